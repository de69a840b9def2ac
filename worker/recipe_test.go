package worker

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type entry struct {
	name string
	kind byte
	data string
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o644, Size: int64(len(e.data))}
		if e.kind != tar.TypeReg {
			h.Size, h.Linkname = 0, e.data
		}
		if len(h.Name) > 100 {
			h.Format = tar.FormatGNU // PAX is refused
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := tw.Write([]byte(e.data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func report(outcome string, modules ...string) entry {
	var list []string
	for _, m := range modules {
		list = append(list, `{"name":"`+m+`","location":"/updates"}`)
	}
	return entry{"result.json", tar.TypeReg,
		`{"version":1,"outcome":"` + outcome + `","modules":[` + strings.Join(list, ",") + `]}`}
}

func read(data []byte) (Output, error) { return ReadOutput(bytes.NewReader(data), int64(len(data))) }

func TestReadOutput(t *testing.T) {
	ko := entry{"module/a.ko", tar.TypeReg, "ELF"}
	strangers := []entry{report(Built)}
	for i := range 50 {
		strangers = append(strangers, entry{fmt.Sprintf("module/%d.ko", 59-i), tar.TypeReg, ""})
	}
	tests := []struct {
		name    string
		entries []entry
		want    string // part of the error; "" for none
	}{
		{"built", []entry{report(Built, "a"), ko}, ""},
		{"built with symvers", []entry{report(Built, "a"), ko, {"module/Module.symvers", tar.TypeReg, ""}}, ""},
		{"no module at all", []entry{report(Built)}, ""},
		{"failed", []entry{report(Failed, "a", "../../x")}, ""},
		{"no report", []entry{ko}, "has no result.json"},
		{"a link for a module", []entry{report(Built, "a"), {"module/a.ko", tar.TypeSymlink, "/etc/shadow"}}, `"module/a.ko": not a regular file`},
		{"a hard link", []entry{report(Built, "a"), {"module/a.ko", tar.TypeLink, "result.json"}}, "not a regular file"},
		{"a FIFO", []entry{report(Built, "a"), {"module/a.ko", tar.TypeFifo, ""}}, "not a regular file"},
		{"a missing module", []entry{report(Built, "a")}, "lacks module/a.ko"},
		{"a module too many", []entry{report(Built), ko}, `holds "module/a.ko"`},
		{"many too many", strangers, `holds "module/10.ko"`},
		{"a module twice", []entry{report(Built, "a"), ko, ko}, "is there twice"},
		{"a name twice", []entry{report(Built, "a", "a"), ko}, "is there twice"},
		{"a name that leaves", []entry{report(Built, "../a"), {"module/../a.ko", tar.TypeReg, ""}}, "is no module name"},
		{"installed files", []entry{report(Built, "a"), ko, {"files/", tar.TypeDir, ""}, {"files/usr/", tar.TypeDir, ""},
			{"files/usr/tool", tar.TypeReg, "x"}, {"files/usr/link", tar.TypeSymlink, "tool"}}, ""},
		{"an installed device", []entry{report(Built, "a"), ko, {"files/null", tar.TypeChar, ""}}, "neither a file"},
		{"an installed hard link", []entry{report(Built, "a"), ko, {"files/x", tar.TypeLink, "module/a.ko"}}, "neither a file"},
		{"an installed path that leaves", []entry{report(Built, "a"), ko, {"files/../x", tar.TypeReg, ""}}, "not a plain path"},
		{"an installed file twice", []entry{report(Built, "a"), ko, {"files/x", tar.TypeReg, ""}, {"files/x", tar.TypeReg, ""}}, `installs "x" twice`},
		{"another version", []entry{{"result.json", tar.TypeReg, `{"version":2,"outcome":"built"}`}}, "version 2 is not known"},
		{"another outcome", []entry{report("fine")}, `outcome "fine" is not known`},
		{"garbage", []entry{{"result.json", tar.TypeReg, "{"}}, "unexpected end of JSON"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := read(archive(t, tt.entries...))
			switch {
			case tt.want == "" && err != nil:
				t.Fatal(err)
			case tt.want == "" && out.Report.Outcome == Built && len(out.Modules) != len(out.Report.Modules):
				t.Errorf("%d modules of %d", len(out.Modules), len(out.Report.Modules))
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
	if _, err := read(archive(t, report(Built, "a"), ko)[:700]); err == nil {
		t.Error("a truncated output was accepted")
	}
	whole := archive(t, report(Built, "a"), ko)
	if _, err := read(append(bytes.Clone(whole), make([]byte, 9000)...)); err != nil {
		t.Errorf("a last record that is filled with zeros: %v", err)
	}
	long := entry{"module/" + strings.Repeat("b", 120) + ".ko", tar.TypeReg, "ELF of a name that needs a header of its own"}
	whole = archive(t, long, report(Built, strings.Repeat("b", 120), "a"), entry{"files/usr/tool", tar.TypeReg, "x"}, entry{"files/usr/empty", tar.TypeReg, ""}, ko)
	out, err := read(whole)
	if err != nil {
		t.Fatal(err)
	}
	sameData(t, whole, out)
	for name, more := range map[string][]byte{"an archive": whole, "a byte": {1}} {
		if _, err := read(append(bytes.Clone(whole), more...)); err == nil || !strings.Contains(err.Error(), "after its end") {
			t.Errorf("%s behind the archive: %v", name, err)
		}
	}
}

// sameData compares files with what reading the archive from its beginning gives.
func sameData(t testing.TB, archive []byte, out Output) {
	t.Helper()
	want := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		if want[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
	compare := func(name string, data *io.SectionReader) {
		t.Helper()
		if got, err := io.ReadAll(data); err != nil || !bytes.Equal(got, want[name]) {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want[name])
		}
	}
	for _, m := range out.Modules {
		compare("module/"+m.Name, m.Data)
	}
	for _, f := range out.Installed {
		if _, ok := want["files/"+f.Name]; ok && f.Mode.IsRegular() { // else it was files//NAME
			compare("files/"+f.Name, f.Data)
		}
	}
	if out.Symvers != nil {
		compare("module/Module.symvers", out.Symvers)
	}
}

func FuzzReadOutput(f *testing.F) {
	f.Add(archive(f, report(Built, "a"), entry{"module/a.ko", tar.TypeReg, "ELF"}))
	f.Add(archive(f, report(Excluded)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := read(data)
		if err != nil {
			return
		}
		if out.Report.Outcome == Built && len(out.Modules) != len(out.Report.Modules) {
			t.Errorf("%d modules of %d", len(out.Modules), len(out.Report.Modules))
		}
		sameData(t, data, out)
		for _, f := range out.Installed {
			if !filepath.IsLocal(f.Name) || f.Mode.Perm()&^0o777 != 0 {
				t.Errorf("installed file %q, %v", f.Name, f.Mode)
			}
		}
		for _, m := range out.Modules {
			if strings.ContainsAny(m.Name, "/\n\x00") || strings.HasPrefix(m.Name, ".") {
				t.Errorf("module name %q", m.Name)
			}
		}
	})
}

func TestWithJobs(t *testing.T) {
	b := Build{Module: "m", Version: "1", Kernel: "6.1", Arch: "x86_64", Jobs: 4, MakeArgs: []string{"V=1"}}
	args := b.Command()
	got := WithJobs(args, 9)
	b.Jobs = 9
	if want := b.Command(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if b.Jobs = 4; !slices.Equal(args, b.Command()) {
		t.Errorf("the command line that was given has changed: %q", args)
	}
	other := []string{"/bin/sh", "-c", "a", "b", "c", "d", "4"}
	if got := WithJobs(other, 9); !slices.Equal(got, other) {
		t.Errorf("another command line became %q", got)
	}
}
