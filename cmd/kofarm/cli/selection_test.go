package cli

import (
	"io"
	"testing"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/matrix"
)

func TestChosen(t *testing.T) {
	cell := func(module, version, release, arch string) *farm.Cell {
		return &farm.Cell{Cell: &matrix.Cell{Module: &matrix.ModuleVersion{Name: module, Version: version}, Kernel: &matrix.Kernel{Release: release, Arch: arch}}}
	}
	cells := []*farm.Cell{cell("a", "1", "6.1.0-1-amd64", "x86_64"), cell("a", "2", "6.1.0-1-amd64", "x86_64"),
		cell("b", "1~rc1+x", "6.1.0-1-amd64", "x86_64"), cell("b", "1~rc1+x", "6.1.0-1-arm64", "aarch64")}
	tests := []struct {
		selectors []string
		want      string // indices
	}{
		{nil, "0123"},
		{[]string{"a"}, "01"},
		{[]string{"a/2"}, "1"},
		{[]string{"@*-arm64"}, "3"},
		{[]string{"*/1*@6.1.0-1-amd64"}, "02"},
		{[]string{"b@/x86_64"}, "2"},
		{[]string{"b", "a/1", "b/1*"}, "230"},
		{[]string{"c"}, "error"},
		{[]string{"a", "a/3"}, "error"},
		{[]string{"["}, "error"},
	}
	for i, c := range cells {
		tests = append(tests, struct {
			selectors []string
			want      string
		}{[]string{c.Row().Selector()}, string(rune('0' + i))})
	}
	for _, tt := range tests {
		got := ""
		found, err := chosen(cells, tt.selectors)
		if err != nil {
			got = "error"
		}
		for _, c := range found {
			for i := range cells {
				if cells[i] == c {
					got += string(rune('0' + i))
				}
			}
		}
		if got != tt.want {
			t.Errorf("%q: got %s, want %s (%v)", tt.selectors, got, tt.want, err)
		}
	}
}

func TestRerun(t *testing.T) {
	tests := []struct {
		args           []string
		selector, want string
	}{
		{[]string{"build"}, "a/1@k/x86_64", "kofarm build --cell a/1@k/x86_64"},
		{[]string{"-q", "build", "f.yaml", "--json", "-v"}, "a/1~2+3@k/x86_64", "kofarm build --cell a/1~2+3@k/x86_64 f.yaml"},
		{[]string{"build", "--cell", "a*", "--cell", "b", "my farm.yaml"}, "a/1@k/x86_64", "kofarm build --cell a/1@k/x86_64 'my farm.yaml'"},
		{[]string{"build", "--cell", "a*", "--cell", "b"}, "", "kofarm build --cell 'a*' --cell b"},
		{[]string{"--store", "it's", "--offline", "build", "-o", "~x", "-j4", "--locked=false"}, "a", `kofarm build --locked=false --offline --output '~x' --parallel 4 --store 'it'\''s' --cell a`},
		{[]string{"build", "--bundle", "b.tar"}, "a", "kofarm build --bundle b.tar --cell a"},
		{[]string{"package", "--locked", "-o", "out", "f.yaml"}, "a", "kofarm build --locked --output out --cell a f.yaml"},
		{[]string{"test", "--accel", "tcg", "--timeout", "90s"}, "a", "kofarm test --accel tcg --timeout 1m30s --cell a"},
	}
	for _, tt := range tests {
		a := &app{stdout: io.Discard, stderr: io.Discard}
		root := a.root()
		for _, cmd := range root.Commands() {
			cmd.RunE = func(*cobra.Command, []string) error { return nil }
		}
		root.SetArgs(tt.args)
		if err := root.Execute(); err != nil {
			t.Fatal(err)
		}
		if got := a.rerun(tt.selector); got != tt.want {
			t.Errorf("%q: got  %s\nwant %s", tt.args, got, tt.want)
		}
	}
}
