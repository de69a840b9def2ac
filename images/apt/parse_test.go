package apt

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseDependency(t *testing.T) {
	tests := []struct{ in, want string }{
		{"gcc-12", "gcc-12"},
		{"make(>=4)", "make (>= 4)"},
		{" a:any ( << 1:2~3-4 ) |b", "a:any (<< 1:2~3-4) | b"},
		{"a (< 1)", "a (<= 1)"},
		{"a (> 1)", "a (>= 1)"},
		{"libstdc++6", "libstdc++6"},
	}
	for _, tt := range tests {
		got, err := ParseDependency(tt.in)
		if err != nil || got.String() != tt.want {
			t.Errorf("%q: got %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
	for _, bad := range []string{"", "|", "a |", "a (1)", "a (>= 1", "a (>= 1) x", "a (== 1)", "a [amd64]", "a <!nocheck>", "-a", "a b", "a (>= )", "a:", "a, b", strings.Repeat("a|", 2000) + "a"} {
		if got, err := ParseDependency(bad); err == nil {
			t.Errorf("%.40q: got %v, want an error", bad, got)
		}
	}
}

func TestBadStanzas(t *testing.T) {
	good := stanzas("a 1; Provides: b (= 1)")
	if _, err := parsePackage([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for old, changed := range map[string]string{
		"Package: a":        "Package: ../a",
		"Version: 1":        "Version: one",
		"Architecture: ":    "Arch: ",
		"Filename: pool/":   "Filename: ../",
		"Filename: pool":    "Filename: ",
		"Size: ":            "Size: -",
		"SHA256: ":          "SHA1: ",
		"Provides: b (= 1)": "Provides: b (>= 1)",
		"Description":       "no field",
	} {
		bad := strings.Replace(good, old, changed, 1)
		if p, err := parsePackage([]byte(bad)); err == nil {
			t.Errorf("%q: got %+v, want an error", changed, p)
		}
	}
}

// The table must find what is unsorted, repeated, or ends without an empty line.
func TestTable(t *testing.T) {
	text := "\n\n" + stanzas("b 1; Provides: v, w (= 1)", "a 1; Essential: yes", "b 2") + "\nPackage: c\nProvides: v"
	table, err := scanTable(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range table.entries {
		names = append(names, e.name)
		if stanza := text[e.offset : e.offset+e.length]; !strings.HasPrefix(stanza, "Package: "+e.name+"\n") {
			t.Errorf("%s: got stanza %q", e.name, stanza)
		}
	}
	if want := []string{"a", "b", "b", "c"}; !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
	var owners []string
	for _, i := range table.providers("v") {
		owners = append(owners, table.entries[i].name)
	}
	if want := []string{"b", "c"}; !slices.Equal(owners, want) {
		t.Errorf("providers: got %v, want %v", owners, want)
	}
	if want := []string{"a"}; !slices.Equal(table.essential, want) {
		t.Errorf("essential: got %v, want %v", table.essential, want)
	}
}

func TestTableLimits(t *testing.T) {
	if _, err := scanTable(strings.NewReader("Package: a\nX: " + strings.Repeat("x", maxIndexLine) + "\n")); !errors.Is(err, ErrLimit) {
		t.Errorf("long line: got %v, want %v", err, ErrLimit)
	}
	if _, err := scanTable(strings.NewReader("Version: 1\n")); err == nil {
		t.Error("stanza without a name: no error")
	}
}

const releaseText = "Origin: Debian\nSuite: stable\nCodename: trixie\nDate: Sat,  1 Aug 2026 09:15:44 UTC\nValid-Until: Sat, 08 Aug 2026 09:15:44 GMT\n" +
	"Acquire-By-Hash: yes\nNotAutomatic: yes\nButAutomaticUpgrades: yes\nNo-Support-for-Architecture-all: Packages\nArchitectures: all amd64\nComponents: main\n" +
	"MD5Sum:\n 00 3 main/x\nSHA256:\n aa 3 main/x\n bb 4 main/y\n"

func TestParseRelease(t *testing.T) {
	r, err := parseRelease([]byte(releaseText))
	if err != nil {
		t.Fatal(err)
	}
	if r.Codename != "trixie" || stamp(r.Date) != "2026-08-01 09:15:44 UTC" || stamp(r.ValidUntil) != "2026-08-08 09:15:44 UTC" ||
		!r.AcquireByHash || !r.noAllPackages || r.rank() != rankUpgrades || !slices.Equal(r.Architectures, []string{"all", "amd64"}) {
		t.Errorf("got %+v", r)
	}
	if want := map[string]releaseFile{"main/x": {3, "aa"}, "main/y": {4, "bb"}}; !maps.Equal(r.files, want) {
		t.Errorf("files: got %v, want %v", r.files, want)
	}
	for _, change := range [][2]string{{"SHA256", "SHA1"}, {"Date: ", "X-Date: "}, {"UTC", "CET"}, {"aa 3", "aa x"}, {"aa 3", "aa -3"}, {"aa 3", "3"}, {"Suite: ", "Suite "}} {
		if _, err := parseRelease([]byte(strings.Replace(releaseText, change[0], change[1], 1))); err == nil {
			t.Errorf("%s for %s: no error", change[1], change[0])
		}
	}
}

func TestURLs(t *testing.T) {
	got := joinURLs([]string{"http://a/debian/", "http://b"}, "pool/main/g/g++_1%3a2~x+y z.deb")
	want := []string{"http://a/debian/pool/main/g/g++_1%253a2~x+y%20z.deb", "http://b/pool/main/g/g++_1%253a2~x+y%20z.deb"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(stanzas(mainLines...)))
	f.Add([]byte("Package: a\n\nPackage: b\nProvides: ,x (= 1), \n\n\n"))
	f.Add([]byte("Package:  \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "Packages")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		table, err := openTable(path)
		if err != nil {
			return
		}
		defer table.file.Close()
		for i, e := range table.entries {
			p, err := table.stanza(i)
			if err == nil && p.Name != e.name && bytes.Count(b, []byte("Package")) == len(table.entries) {
				t.Errorf("stanza %d: got %q, want %q", i, p.Name, e.name)
			}
		}
		for _, p := range table.provides {
			if !slices.Contains(table.providers(p.name), int(p.entry)) {
				t.Errorf("%q is not found by its name", p.name)
			}
		}
	})
}

func FuzzParseDependency(f *testing.F) {
	for _, s := range []string{"a", "a:any (>= 1) | b (<< 2~)", "a (< 1)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDependency(s)
		if err != nil {
			return
		}
		again, err := ParseDependency(d.String())
		if err != nil || !slices.Equal(d, again) {
			t.Errorf("%q: got %q and then %q, %v", s, d, again, err)
		}
	})
}

func FuzzParseRelease(f *testing.F) {
	f.Add([]byte(releaseText))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = parseRelease(b) // must not panic
	})
}

func FuzzVerify(f *testing.F) {
	key := newKey(f, testNow.AddDate(-1, 0, 0), 0)
	ring, err := readKeyring(keyring(f, true, key))
	if err != nil {
		f.Fatal(err)
	}
	good := sign(f, releaseText, testNow, key)
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := verify(b, ring, testNow)
		if err == nil && strings.TrimSpace(string(text)) != strings.TrimSpace(releaseText) {
			t.Errorf("took a text that was never signed: %q", text)
		}
	})
}
