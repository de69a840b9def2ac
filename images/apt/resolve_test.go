package apt

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestResolve(t *testing.T) {
	tests := []struct {
		name  string
		lines []string
		roots []string
		want  string // space-separated name=version, or text of the error after "!"
	}{
		{"chain", []string{"a 1; Depends: b", "b 1; Pre-Depends: c", "c 1", "d 1"}, []string{"a"}, "a=1 b=1 c=1"},
		{"cycle", []string{"a 1; Depends: b", "b 1; Depends: a"}, []string{"a"}, "a=1 b=1"},
		{"highest version", []string{"a 1", "a 10", "a 9"}, []string{"a"}, "a=10"},
		{"exact older version", []string{"a 1", "a 10"}, []string{"a (= 1)"}, "a=1"},
		{"strictly older", []string{"a 1", "a 10"}, []string{"a (<< 10)"}, "a=1"},
		{"older or equal", []string{"a 1", "a 10", "a 11"}, []string{"a (<= 10)"}, "a=10"},
		{"newer", []string{"a 1", "a 10"}, []string{"a (>> 10)"}, "!a (>> 10): bookworm have 10, 1 only"},
		{"first alternative", []string{"a 1; Depends: b | c", "b 1", "c 1"}, []string{"a"}, "a=1 b=1"},
		{"second alternative where the first is missing", []string{"a 1; Depends: b | c", "c 1"}, []string{"a"}, "a=1 c=1"},
		{"second alternative where the first is too old", []string{"a 1; Depends: b (>= 2) | c", "b 1", "c 1"}, []string{"a"}, "a=1 c=1"},
		{"second alternative where the first lacks something", []string{"a 1; Depends: b | c", "b 1; Depends: x", "c 1"}, []string{"a"}, "a=1 c=1"},
		{"alternative needed anyway", []string{"a 1; Depends: b | c, d", "b 1", "c 1", "d 1; Depends: c"}, []string{"a"}, "a=1 c=1 d=1"},
		{"alternative asked for", []string{"a 1; Depends: b | c", "b 1", "c 1"}, []string{"a", "c"}, "a=1 c=1"},
		{"package before provider", []string{"a 1; Depends: v", "p 1; Provides: v", "v 1"}, []string{"a"}, "a=1 v=1"},
		{"provider", []string{"a 1; Depends: v", "p 1; Provides: v"}, []string{"a"}, "a=1 p=1"},
		{"chosen provider", []string{"a 1; Depends: v, q", "p 1; Provides: v", "q 1; Provides: v"}, []string{"a"}, "a=1 q=1"},
		{"provider by priority", []string{"a 1; Depends: v", "p 1; Provides: v; Priority: optional", "q 1; Provides: v; Priority: required"}, []string{"a"}, "a=1 q=1"},
		{"versioned provides", []string{"a 1; Depends: v (>= 2)", "p 1; Provides: v (= 1)", "q 1; Provides: v (= 3)"}, []string{"a"}, "a=1 q=1"},
		{"unversioned provides meets no version", []string{"a 1; Depends: v (>= 2)", "p 9; Provides: v"}, []string{"a"}, "!a (1) depends on v (>= 2): bookworm have of p only"},
		{"alternative that is provided comes before a package", []string{"a 1; Depends: v | b", "b 1", "p 1; Provides: v"}, []string{"a"}, "a=1 p=1"},
		{"all", []string{"a 1; Depends: b", "b 1; Architecture: all"}, []string{"a"}, "a=1 b=1"},
		{"foreign packages in the index", []string{"a 1; Depends: b", "b 1; Architecture: arm64"}, []string{"a"}, "!a (1) depends on b: not available in bookworm"},
		{"any needs allowed", []string{"a 1; Depends: python3:any", "python3 3; Multi-Arch: allowed"}, []string{"a"}, "a=1 python3=3"},
		{"any without allowed", []string{"a 1; Depends: python3:any", "python3 3; Multi-Arch: foreign"}, []string{"a"}, "!python3:any"},
		{"native", []string{"a 1; Depends: b:native, c:amd64", "b 1; Multi-Arch: same", "c 1; Multi-Arch: foreign"}, []string{"a"}, "a=1 b=1 c=1"},
		{"another architecture", []string{"a 1; Depends: b:arm64", "b 1"}, []string{"a"}, "!b:arm64"},
		{"omitted", []string{"h 1; Depends: linux-image-1 (= 1) | linux-image-1-unsigned, k", "k 1", "linux-image-1 1; Depends: omit-me, big", "big 1"}, []string{"h"}, "h=1 k=1"},
		{"omitted and missing", []string{"h 1; Depends: linux-image-9"}, []string{"h"}, "h=1"},
		{"older version for a later dependency", []string{"a 1; Depends: x", "b 1; Depends: x (= 1)", "x 1; Depends: y", "x 2; Depends: z", "y 1", "z 1"}, []string{"a", "b"}, "a=1 b=1 x=1 y=1"},
		{"two that cannot agree", []string{"a 1; Depends: x (>= 2)", "b 1; Depends: x (= 1)", "x 1", "x 2"}, []string{"a", "b"},
			"!a: a (1) depends on x (>= 2): but b (1) depends on x (= 1)"},
		{"headers of an older version", []string{"h 2; Depends: c (= 2)", "h 1; Depends: c (= 1)", "c 2", "c 1"}, []string{"h (= 1)"}, "c=1 h=1"},
		{"older version where the newest lacks something", []string{"a 2; Depends: x", "a 1"}, []string{"a"}, "a=1"},
		{"conflict, next alternative", []string{"a 1; Depends: k, b | c", "k 1; Conflicts: b", "b 1", "c 1"}, []string{"a"}, "a=1 c=1 k=1"},
		{"breaks older versions only", []string{"a 1; Depends: k, b", "k 1; Breaks: b (<< 2)", "b 2", "b 1"}, []string{"a"}, "a=1 b=2 k=1"},
		{"conflict seen late", []string{"a 1; Depends: b | c, d | e", "b 1", "c 1", "d 1; Conflicts: b", "e 1; Conflicts: b"}, []string{"a"}, "a=1 c=1 d=1"},
		{"conflict with what one provides oneself", []string{"a 1; Depends: m", "m 1; Provides: mta; Conflicts: mta"}, []string{"a"}, "a=1 m=1"},
		{"conflict with what another provides", []string{"m 1; Provides: mta; Conflicts: mta", "n 1; Provides: mta; Conflicts: mta"}, []string{"m", "n"}, "!n (1) excludes mta, which is there because m is asked for|m, which excludes mta"},
		{"conflict without a way out", []string{"a 1; Depends: b, c", "b 1; Conflicts: c", "c 1"}, []string{"a"}, "!a: a (1) depends on c: c (1) excludes b, which excludes c, which is there because a is asked for, a (1) depends on b"},
		{"deep chain in the error", []string{"a 1; Depends: b", "b 2; Depends: c (>= 3)", "c 1"}, []string{"a"}, "!a: a (1) depends on b: b (2) depends on c (>= 3): bookworm have 1 only"},
		{"unknown root", []string{"a 1"}, []string{"nothing"}, "!nothing: not available in bookworm"},
		{"bad root", []string{"a 1"}, []string{"a (1)"}, "!no operator"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := universe(t, nil, index(t, "bookworm", &Release{}, tt.lines...))
			closure, err := Resolve(u, Request{Roots: tt.roots, Omit: func(n string) bool { return strings.HasPrefix(n, "linux-image-") || n == "omit-me" }})
			texts, fails := strings.CutPrefix(tt.want, "!")
			if !fails {
				if got := strings.Join(packageNames(closure), " "); err != nil || got != tt.want {
					t.Errorf("got %s, %v, want %s", got, err, tt.want)
				}
				return
			}
			if err == nil {
				t.Fatalf("got %v, want an error", closure)
			}
			if !slices.ContainsFunc(strings.Split(texts, "|"), func(text string) bool { return strings.Contains(err.Error(), text) }) {
				t.Errorf("got %q, want %q in it", err, texts)
			}
			if !errors.Is(err, ErrUnmet) && tt.name != "bad root" {
				t.Errorf("got %v, want %v", err, ErrUnmet)
			}
		})
	}
}

func TestResolveOnBase(t *testing.T) {
	u := universe(t, nil, index(t, "bookworm", &Release{}, "make 4", "libc 2", "tool 1; Depends: libc", "h 1; Depends: tool, make | gmake, x", "x 1; Depends: libc (>= 3)"))
	base, err := Resolve(u, Request{Roots: []string{"tool", "make"}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Resolve(u, Request{Roots: []string{"h"}, Base: base, Omit: func(n string) bool { return n == "x" }})
	if err != nil || !slices.Equal(packageNames(got), []string{"h=1"}) {
		t.Errorf("got %v, %v, want h alone", packageNames(got), err)
	}
	if _, err = Resolve(u, Request{Roots: []string{"h"}, Base: base}); err == nil || !strings.Contains(err.Error(), "libc is 2, because it is in the base") {
		t.Errorf("got %v", err)
	}
}

func TestBackports(t *testing.T) {
	base := index(t, "bookworm", &Release{}, "gcc 12", "make 4", "kbuild-6.1 6.1")
	security := index(t, "bookworm-security", &Release{}, "gcc 12+s1")
	backports := index(t, "bookworm-backports", &Release{NotAutomatic: true, ButAutomaticUpgrades: true},
		"gcc 14~bpo12+1", "headers-6.12 6.12~bpo12+1; Depends: kbuild-6.12 (= 6.12~bpo12+1), gcc, make (>= 4.4)", "kbuild-6.12 6.12~bpo12+1", "make 4.4~bpo12+1", "make 4.4")
	u := universe(t, nil, base, security, backports)
	if got, want := lookup(t, u, "gcc"), []string{"gcc=12+s1", "gcc=12", "gcc=14~bpo12+1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	closure, err := Resolve(u, Request{Roots: []string{"headers-6.12"}})
	if want := []string{"gcc=12+s1", "headers-6.12=6.12~bpo12+1", "kbuild-6.12=6.12~bpo12+1", "make=4.4"}; err != nil || !slices.Equal(packageNames(closure), want) {
		t.Errorf("got %v, %v, want %v", packageNames(closure), err, want)
	}
	pinned := universe(t, map[string]string{"gcc": "bookworm-backports"}, base, security, backports)
	if got, want := lookup(t, pinned, "gcc")[0], "gcc=14~bpo12+1"; got != want {
		t.Errorf("pinned: got %v, want %v", got, want)
	}
}

func TestRank(t *testing.T) {
	for want, r := range map[int]*Release{500: {}, 100: {NotAutomatic: true, ButAutomaticUpgrades: true}, 1: {NotAutomatic: true}} {
		if got := r.rank(); got != want {
			t.Errorf("%+v: got %d, want %d", r, got, want)
		}
	}
}

func TestUniverse(t *testing.T) {
	one := index(t, "one", &Release{}, "b 1", "a 1; Essential: yes", "linux-headers-2 2", "linux-headers-1 1", "p 1; Provides: v, w (= 2), v")
	two := index(t, "two", &Release{}, "linux-headers-1 1", "q 1; Provides: v; Essential: yes", "a 2")
	two.Source.Mirrors = []string{"http://other"}
	u := universe(t, nil, one, two)
	if got, want := slices.Collect(u.Names("linux-headers-")), []string{"linux-headers-1", "linux-headers-2"}; !slices.Equal(got, want) {
		t.Errorf("names: got %v, want %v", got, want)
	}
	for range u.Names("") {
		break // must not panic
	}
	essential, err := u.Essential()
	if want := []string{"q"}; err != nil || !slices.Equal(essential, want) {
		t.Errorf("essential: got %v, %v, want %v: the candidate of a is not essential", essential, err, want)
	}
	providers, err := u.Providers("v")
	if err != nil || len(providers) != 2 || providers[0].Package.Name != "q" || providers[1].Package.Name != "p" {
		t.Errorf("providers: got %v, %v", providers, err)
	}
	all, err := u.Lookup("linux-headers-1")
	if err != nil || len(all) != 1 || len(all[0].URLs) != 2 {
		t.Errorf("the same file in two suites: got %v, %v, want one with two addresses", all, err)
	}
	if _, err := NewUniverse(nil, one, &Index{Source: Source{Arch: "arm64"}}); err == nil {
		t.Error("two architectures: no error")
	}
}
