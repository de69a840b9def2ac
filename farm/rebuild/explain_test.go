package rebuild

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// run runs a real tool.
func run(t testing.TB, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// object compiles C to a relocatable file with a build-id, as modules have it.
func object(t testing.TB, source string) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "m.c"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, dir, nil, "gcc", "-c", "-O1", "m.c")
	run(t, dir, nil, "ld", "-r", "--build-id=sha1", "-o", "m.ko", "m.o")
	data, err := os.ReadFile(filepath.Join(dir, "m.ko"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestExplain(t *testing.T) {
	const a, b = "int a(void) { return 1; }\n", "int b(void) { return 2; }\n"
	text := func(s string) string { return `const char *text(void) { return "` + s + `"; }` }
	tests := []struct {
		name, was, now string
		section        string // of the first difference
		wasText        string
		cause          string
	}{
		{"date", text("built Nov 25 2026 now"), text("built Dec  1 2026 now"), ".rodata.str1.1", `"built Nov 25 2026 now"`, "clock"},
		{"time", text("at 10:11:12"), text("at 10:11:13"), ".rodata.str1.1", `"at 10:11:12"`, "clock"},
		{"seconds", text("1795587758"), text("1829974959"), ".rodata.str1.1", `"1795587758"`, "clock"},
		{"path", text("/home/a/m.c:3"), text("/home/b/m.c:3"), ".rodata.str1.1", `"/home/a/m.c:3"`, "path"},
		{"host", text("on here"), text("on " + otherHost), ".rodata.str1.1", `"on here"`, "host"},
		{"order", a + b, b + a, ".text", "", "order"},
		{"random", text("8c7d"), text("f00d"), ".rodata.str1.1", `"8c7d"`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			was, now := object(t, tt.was), object(t, tt.now)
			all := explain(was, now)
			if len(all) == 0 || all[0].Section != tt.section || tt.wasText != "" && all[0].Was != tt.wasText {
				t.Fatalf("got %v, want section %s with %s", all, tt.section, tt.wasText)
			}
			if last := all[len(all)-1]; last.Section != ".note.gnu.build-id" {
				t.Errorf("the last difference is %v, want the build-id, which follows from the others", last)
			}
			var kinds []string
			for _, c := range readCauses(all) {
				kinds = append(kinds, c.Kind)
				if c.Proven {
					t.Errorf("%+v: nothing has proven it", c)
				}
			}
			if tt.cause == "" && len(kinds) > 0 || tt.cause != "" && !slices.Contains(kinds, tt.cause) {
				t.Errorf("got causes %q, want %q", kinds, tt.cause)
			}
		})
	}
}

func TestExplainSame(t *testing.T) {
	m := object(t, "int a;")
	if all := explain(m, bytes.Clone(m)); len(all) != 0 {
		t.Errorf("got %v", all)
	}
}

func TestExplainBuildIDAlone(t *testing.T) {
	was := object(t, "int a(void) { return 1; }")
	at := bytes.Index(was, []byte("GNU\x00"))
	if at < 0 {
		t.Fatal("no build-id")
	}
	now := bytes.Clone(was)
	now[at+4] ^= 1
	causes := readCauses(explain(was, now))
	if len(causes) != 1 || causes[0].Kind != CauseBuildID {
		t.Errorf("got %+v", causes)
	}
}

func TestExplainSections(t *testing.T) {
	was, now := object(t, "int a(void) { return 1; }"), object(t, `int a(void) { return 1; } int more __attribute__((section(".more"))) = 7;`)
	gone := func(all []Difference, side int) bool {
		return slices.ContainsFunc(all, func(d Difference) bool { return d.Section == ".more" && d.Sizes[side] == -1 })
	}
	if all := explain(was, now); !gone(all, 0) {
		t.Errorf("a new section is not told: %v", all)
	}
	if all := explain(now, was); !gone(all, 1) {
		t.Errorf("a missing section is not told: %v", all)
	}
}

func TestExplainText(t *testing.T) {
	all := explain([]byte("a\x00\x01one two"), []byte("a\x00\x01one ten"))
	if len(all) != 1 || all[0].Offset != 8 || all[0].Was != `"one two"` || all[0].Now != `"one ten"` || all[0].Section != "" {
		t.Errorf("got %+v", all)
	}
	if all = explain([]byte{1, 2, 3}, []byte{1, 2}); len(all) != 1 || all[0].Was != "03" || all[0].Now != "" || !strings.Contains(all[0].String(), "the end (3 bytes became 2)") {
		t.Errorf("got %v", all)
	}
}

func FuzzExplain(f *testing.F) {
	a, b := object(f, `const char *a(void) { return "a"; }`), object(f, `int b; const char *a(void) { return "b"; }`)
	f.Add(a, b)
	f.Add(a, a[:len(a)/2])
	f.Add([]byte("text"), []byte{})
	f.Fuzz(func(t *testing.T, was, now []byte) {
		all := explain(was, now)
		if bytes.Equal(was, now) != (len(all) == 0) {
			t.Errorf("%d differences", len(all))
		}
		readCauses(all)
		for _, d := range all {
			_ = d.String()
		}
	})
}
