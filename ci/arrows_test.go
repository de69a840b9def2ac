package ci_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
)

const module = "github.com/kofarm/kofarm/"

// mayImport holds the arrows of the design: data moves from matrix to dist/,
// imports point the other way. A package falls under its longest prefix.
var mayImport = map[string][]string{
	"matrix":                {"matrix"},
	"images":                {"images", "matrix"},
	"images/apt":            {"images/fetch"},
	"images/deb":            {},
	"images/debian":         {"images/apt", "images/fetch"},
	"images/fetch":          {},
	"images/registry":       {"images/store"},
	"images/store":          {},
	"worker":                {"worker", "matrix"},
	"worker/containerd":     {"worker"},
	"worker/docker":         {"worker"},
	"farm":                  {"farm", "images", "worker", "matrix"},
	"farm/attest":           {"farm/modsign"},
	"farm/boot":             {"farm/boot/efivars", "farm/kmod", "images/apt", "images/store"},
	"farm/boot/efivars":     {},
	"farm/keyfile":          {},
	"farm/kmod":             {},
	"farm/modsign":          {"farm/keyfile", "farm/kmod"},
	"farm/pack":             {},
	"farm/pack/deb":         {"farm/pack/dkms", "farm/pack/edit", "matrix/kernel"},
	"farm/pack/dkms":        {"farm/pack/edit", "matrix/kernel"},
	"farm/pack/rpm":         {"farm/kmod", "farm/pack/dkms", "farm/pack/rpm", "matrix/kernel"},
	"farm/pack/rpm/rpmfile": {"farm/pack/edit"},
	"farm/repo":             {"farm/sign", "images/apt", "images/deb"},
	"farm/report":           {"farm", "matrix"},
	"farm/resign":           {"farm/kmod", "farm/modsign", "farm/pack"},
	"farm/sign":             {"farm/keyfile"},
	"cmd":                   {"cmd", "farm", "images", "worker", "matrix"},
	"ci":                    {"ci", "cmd", "farm", "images", "worker", "matrix"},
}

// heavy are dependencies that one package keeps to itself.
var heavy = map[string]string{
	"github.com/containerd/containerd": "worker/containerd",
	"github.com/docker/docker":         "worker/docker",
	"github.com/opencontainers/runc":   "worker/embedded",
}

// ruleFor finds the longest prefix of a package's path that has a rule.
func ruleFor(pkg string) ([]string, bool) {
	for p := pkg; p != ""; {
		if rule, ok := mayImport[p]; ok {
			return rule, true
		}
		i := strings.LastIndex(p, "/")
		p = p[:max(i, 0)]
	}
	return nil, false
}

func within(pkg string, prefixes []string) bool {
	for _, p := range prefixes {
		if pkg == p || strings.HasPrefix(pkg, p+"/") {
			return true
		}
	}
	return false
}

func TestImportsPointOneWay(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-tags", "seccomp netgo osusergo", "-json=ImportPath,Imports,TestImports", "./...")
	cmd.Dir = rig.Root()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(out)
	n := 0
	for ; ; n++ {
		var p struct {
			ImportPath           string
			Imports, TestImports []string
		}
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		pkg := strings.TrimPrefix(p.ImportPath, module)
		rule, ok := ruleFor(pkg)
		if !ok {
			t.Errorf("%s: no rule says what it may import", pkg)
		}
		for _, imported := range append(p.Imports, p.TestImports...) {
			for dep, owner := range heavy {
				if within(imported, []string{dep}) && pkg != owner {
					t.Errorf("%s imports %s, which belongs to %s", pkg, imported, owner)
				}
			}
			target, own := strings.CutPrefix(imported, module)
			if own && target != pkg && !within(target, rule) && !within(target, []string{"ci/rig"}) {
				t.Errorf("%s imports %s, against the arrows", pkg, target)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if n < 10 {
		t.Errorf("go list gave %d packages", n)
	}
}
