package matrix

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with the file, which -update writes.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// all returns the errors that Parse and Expand join.
func all(t *testing.T, err error) []*Error {
	t.Helper()
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%v is not joined", err)
	}
	var list []*Error
	for _, err := range joined.Unwrap() {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			t.Fatalf("%v is no *Error", err)
		}
		list = append(list, e)
	}
	return list
}

func TestParseBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			f, warnings, err := Parse("farm.yaml", read(t, file))
			if f != nil || err == nil || len(warnings) > 0 {
				t.Fatalf("got %v, warnings %v, error %v, want only an error", f, warnings, err)
			}
			golden(t, "testdata/bad/"+name+".err", err.Error()+"\n")
		})
	}
}

func TestParseLimits(t *testing.T) {
	_, _, err := Parse("farm.yaml", make([]byte, MaxFile+1))
	if want := "farm.yaml:1:1: the file is larger than 8MiB"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, _, err = Parse("farm.yaml", []byte(strings.Repeat("a,", maxSeparators+1)))
	if want := "farm.yaml:1:1: the file has more than 1048576 entries (split it)"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, _, err = Parse("farm.yaml", []byte("modules:\n"+strings.Repeat("- {a: 1, b: 2}\n", 1000)))
	errs := all(t, err)
	if last := errs[len(errs)-1].Msg; len(errs) != maxReports+1 || last != "100 errors: any others are not shown" {
		t.Errorf("got %d errors, the last %q", len(errs), last)
	}
	_, _, err = Parse("farm.yaml", []byte(strings.Repeat("é", 100)+": 1"))
	if got := all(t, err)[0].Value; got != strings.Repeat("é", 40)+"..." {
		t.Errorf("got value %q", got)
	}
	_, _, err = Parse("farm.yaml", []byte(strings.Repeat("[", 20000)))
	if err == nil {
		t.Error("deep nesting is accepted")
	}
}

func parse(t *testing.T, data string) *Farm {
	t.Helper()
	f, warnings, err := Parse("farm.yaml", []byte(data))
	if err != nil || len(warnings) > 0 {
		t.Fatal(warnings, err)
	}
	return f
}

func TestParseGood(t *testing.T) {
	for _, name := range []string{"minimal", "full", "attest", "test"} {
		t.Run(name, func(t *testing.T) {
			f := parse(t, string(read(t, "testdata/good/"+name+".yaml")))
			got, err := json.MarshalIndent(struct {
				*Farm
				Indexes []Index
			}{f, f.Indexes()}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "testdata/good/"+name+".json", string(got)+"\n")
		})
	}
}

func TestParseDefaults(t *testing.T) {
	f := parse(t, string(read(t, "testdata/good/minimal.yaml")))
	m := f.Modules[0]
	if m.Name != "" || m.Timeout != 30*time.Minute || m.Source.Suite != "bookworm" || m.Source.Distribution != "debian" {
		t.Errorf("got module %+v", m)
	}
	set := f.Kernels[0].Set
	if set.Distribution != "debian" || set.Releases[0].Latest != 1 || set.Arch[0].Text != "x86_64" || set.Flavors != nil {
		t.Errorf("got kernels %+v", set)
	}
	if f.Build.Retries != 2 || f.Limits.Memory != 4*GiB || f.Output.Directory != "dist" {
		t.Errorf("got %+v", f)
	}
}

func TestParseAppliesModuleLists(t *testing.T) {
	f := parse(t, string(read(t, "testdata/good/full.yaml")))
	one, two := f.Modules[2], f.Modules[3]
	if got, want := Texts(two.BuildPackages), []string{"libelf-dev", "libfoo-dev"}; !slices.Equal(got, want) {
		t.Errorf("got build packages %q, want %q", got, want)
	}
	if got, want := two.MakeArgs, []string{"W=1", "V=1"}; !slices.Equal(got, want) {
		t.Errorf("got make arguments %q, want %q", got, want)
	}
	if len(one.BuildPackages) != 1 || len(one.MakeArgs) != 1 || one.Timeout != 10*time.Minute || two.Timeout != 20*time.Minute {
		t.Errorf("got %+v and %+v", one, two)
	}
}

func TestParseSize(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Size
		back string
	}{
		{"1", 1, "1"}, {"1024", KiB, "1KiB"}, {"4GiB", 4 * GiB, "4GiB"}, {"64 MiB", 64 * MiB, "64MiB"},
		{"1536KiB", 1536 * KiB, "1536KiB"}, {"8388607TiB", 8388607 * TiB, "8388607TiB"},
	} {
		got, err := ParseSize(tt.text)
		if err != nil || got != tt.want || got.String() != tt.back {
			t.Errorf("ParseSize(%q) = %d (%v), %v, want %d (%s)", tt.text, got, got, err, tt.want, tt.back)
		}
	}
	for _, s := range []string{"", "0", "-1", "4G", "4GB", "1.5GiB", "GiB", "8388608TiB", "1e3", "0x10", "9223372036854775808"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", s, got)
		}
	}
}

func TestCheckName(t *testing.T) {
	for s, want := range map[string]bool{
		"acpi-call": true, "1.2+git~3_x": true, "a": true,
		"": false, ".": false, "..": false, "-a": false, "a/b": false, "a b": false, "a\n": false, "é": false,
		strings.Repeat("a", MaxName+1): false,
	} {
		if err := CheckName(s); (err == nil) != want {
			t.Errorf("CheckName(%q) = %v, want accepted %v", s, err, want)
		}
	}
}

func TestWarningString(t *testing.T) {
	w := Warning{File: "farm.yaml", Line: 3, Column: 5, Msg: "a", Hint: "b"}
	if got, want := w.String(), "farm.yaml:3:5: warning: a (b)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"modlues", "modules", 1}, {"kitten", "sitting", 3}, {"abc", "abc", 0}} {
		if got := distance(tt.a, tt.b); got != tt.want || distance(tt.b, tt.a) != got {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// FuzzParse holds that Parse never panics, that every error has a line and prints on one, and that a farm
// which it accepts expands over a small catalogue to one and the same plan.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		farm, _, err := Parse("farm.yaml", data)
		if err != nil {
			for _, e := range all(t, err) {
				if e.Line < 1 || e.Column < 1 || strings.ContainsAny(e.Error(), "\n\r") {
					t.Errorf("%q has no place or is no line", e)
				}
			}
			return
		}
		for _, m := range farm.Modules {
			for _, part := range []*string{&m.Name, &m.Version} {
				if *part == "" {
					*part = "x"
				}
			}
		}
		plan, _, err := Expand(farm, debian)
		again, _, errAgain := Expand(farm, debian)
		one, _ := json.Marshal(plan)
		two, _ := json.Marshal(again)
		if (err == nil) != (errAgain == nil) || !bytes.Equal(one, two) {
			t.Errorf("two expansions differ: %s (%v), %s (%v)", one, err, two, errAgain)
		}
	})
}
