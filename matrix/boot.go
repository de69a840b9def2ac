package matrix

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/kofarm/kofarm/matrix/kernel"
)

// Test says how built modules are booted in their kernels.
type Test struct {
	// Require keeps a module version out of a kernel's packages unless it is
	// proven there: RequireLoaded, or RequireNothing, the default.
	Require string
	Accel   string // auto (the default), kvm or tcg
	// Signatures is IgnoreSignatures, the default, or EnforceSignatures: the modules
	// are signed as Output.SignModules says, and the kernel is booted from UEFI
	// firmware that has it trust the certificate, and loads nothing else.
	Signatures string
	Timeout    time.Duration // of loading one module, or one script; default one minute
	Memory     Size          // of the machine; default 256 MiB
	Alone      bool          // each module version has a boot of its own, which no other may lie in
	Pos        Pos

	signatures Pos
}

// The values of Test.Require.
const (
	RequireNothing = "nothing"
	RequireLoaded  = "loaded"
)

// The values of Test.Signatures.
const (
	IgnoreSignatures  = "ignore"
	EnforceSignatures = "enforce"
)

// Enforces says whether kernels load signed modules only; also of nil.
func (t *Test) Enforces() bool { return t != nil && t.Signatures == EnforceSignatures }

// ModuleTest says how one module version is tested.
type ModuleTest struct {
	Parameters map[string][]string // by the module's name
	First      []string            // modules or aliases of the kernel's own to load before
	Script     Word                // path of a script for busybox's sh that runs when the modules are loaded; or no text
	Expect     []Expectation       // where the verdict is another than loaded or refused; the first that matches counts
	Pos        Pos
}

// Expectation is a verdict that is right on some kernels. It matches a kernel if
// every axis that is given does; without any it matches all.
type Expectation struct {
	Verdict                                    string
	Release, Flavor, Suite, Distribution, Arch []Word
	Pos                                        Pos
}

// verdicts are those of package farm/boot.
var verdicts = []string{"loaded", "refused", "failed", "rejected", "crashed", "hung"}

// MinTestTimeout is the least of [Test.Timeout].
const MinTestTimeout = 3 * time.Second

const (
	minTestMemory  = 96 * MiB
	defaultTimeout = time.Minute
)

func (d *decoder) test(n *yaml.Node) *Test {
	t := &Test{Require: RequireNothing, Signatures: IgnoreSignatures, Accel: "auto", Timeout: defaultTimeout, Memory: 256 * MiB, Pos: posOf(n)}
	d.mapping(n, "test", fields{
		"alone":   func(n *yaml.Node) { d.boolean(n, "alone", &t.Alone) },
		"require": func(n *yaml.Node) { t.Require = d.word(n, "require", []string{RequireLoaded, RequireNothing}) },
		"accel":   func(n *yaml.Node) { t.Accel = d.word(n, "accel", []string{"auto", "kvm", "tcg"}) },
		"signatures": func(n *yaml.Node) {
			t.Signatures, t.signatures = d.word(n, "signatures", []string{EnforceSignatures, IgnoreSignatures}), posOf(n)
		},
		"timeout": func(n *yaml.Node) {
			d.duration(n, "timeout", &t.Timeout)
			if t.Timeout < MinTestTimeout {
				d.invalid(n, "timeout", fmt.Errorf("want at least %v: no module is loaded in less on a busy machine", MinTestTimeout))
			}
		},
		"memory": func(n *yaml.Node) {
			d.size(n, "memory", &t.Memory)
			if t.Memory < minTestMemory {
				d.invalid(n, "memory", fmt.Errorf("want at least %v: less does not hold a kernel", minTestMemory))
			}
		},
	})
	return t
}

// signedTest checks that a test which needs signatures has a key for them.
func (d *decoder) signedTest(f *Farm) {
	if f.Test.Enforces() && f.Output.SignModules == nil {
		d.fail(f.Test.signatures, EnforceSignatures, "signatures: there is no key that signs the modules", "give output.sign-modules")
	}
}

var (
	moduleNameRegexp = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]*$`)
	aliasRegexp      = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.:+-]*$`)
	parameterRegexp  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*(=.*)?$`)
)

var (
	checkModuleName = like(moduleNameRegexp, "the name of a kernel module")
	checkAlias      = like(aliasRegexp, "the name or an alias of a kernel module")
	checkParameter  = like(parameterRegexp, "a module's parameter: name=value")
)

func (d *decoder) moduleTest(n *yaml.Node) *ModuleTest {
	t := &ModuleTest{Pos: posOf(n)}
	d.mapping(n, "test", fields{
		"parameters": func(n *yaml.Node) { t.Parameters = d.parameters(n) },
		"load-first": func(n *yaml.Node) { t.First = Texts(d.words(n, "load-first", checkAlias)) },
		"script":     func(n *yaml.Node) { t.Script = d.str(n, "script", checkPath) },
		"expect": func(n *yaml.Node) {
			if n.Kind == yaml.MappingNode {
				t.Expect = []Expectation{d.expectation(n)}
				return
			}
			d.list(n, "expect", func(n *yaml.Node) { t.Expect = append(t.Expect, d.expectation(n)) })
		},
	})
	return t
}

// parameters reads lists of parameters by module.
func (d *decoder) parameters(n *yaml.Node) map[string][]string {
	if n.Kind != yaml.MappingNode {
		d.wrongKind(n, "parameters", "a mapping by module, as in {acpi_call: [\"debug=1\"]}")
		return nil
	}
	all := map[string][]string{}
	spelled := map[string]string{}
	for key, value := range d.pairs(n) {
		if err := checkModuleName(key.Value); err != nil {
			d.invalid(key, "parameters", err)
			continue
		}
		module := strings.ReplaceAll(key.Value, "-", "_") // as the kernel does
		if other := spelled[module]; other != "" && other != key.Value {
			d.fail(posOf(key), key.Value, "parameters: "+key.Value+" is the module "+other+", which has some already", "give them in one list")
		}
		spelled[module] = key.Value
		all[key.Value] = Texts(d.someWords(value, "parameters", checkParameter))
	}
	return all
}

func (d *decoder) expectation(n *yaml.Node) Expectation {
	e := Expectation{Pos: posOf(n)}
	axis := func(key string, into *[]Word, is check) func(*yaml.Node) {
		return func(n *yaml.Node) { *into = d.someWords(n, key, is) }
	}
	given := d.mapping(n, "expect", fields{
		"verdict":      func(n *yaml.Node) { e.Verdict = d.word(n, "verdict", verdicts) },
		"release":      axis("release", &e.Release, checkRelease),
		"flavor":       axis("flavor", &e.Flavor, checkGlob),
		"suite":        axis("suite", &e.Suite, checkGlob),
		"distribution": axis("distribution", &e.Distribution, checkGlob),
		"arch":         func(n *yaml.Node) { e.Arch = d.archPatterns(n) },
	})
	if given != nil {
		d.required(n, given, "verdict", "one of "+sentence(verdicts, "or"))
	}
	return e
}

// match says whether the expectation is about a kernel.
func (e Expectation) match(k *Kernel) bool {
	return anyMatchRelease(compile(e.Release, newReleasePattern), kernel.Release(k.Release)) &&
		anyMatch(compile(e.Flavor, newPattern), k.Flavor) && anyMatch(compile(e.Suite, newPattern), k.Suite) &&
		anyMatch(compile(e.Distribution, newPattern), k.Distribution) && anyMatch(compile(e.Arch, newPattern), k.Arch)
}

// judgeExpectations reports what is expected on kernels of which there are none.
func (e *expander) judgeExpectations(kernels []*Kernel) {
	seen := map[Pos]bool{} // versions of a module share their test
	for _, m := range e.farm.Modules {
		if m.Test == nil {
			continue
		}
		for _, x := range m.Test.Expect {
			if !seen[x.Pos] && !slices.ContainsFunc(kernels, x.match) {
				e.warn(x.Pos, "", "expect matches no kernel", "")
			}
			seen[x.Pos] = true
		}
	}
}

// Expected gives the verdict that the farm file expects of a cell; "" where it
// expects none in particular.
func (c *Cell) Expected() (verdict string, at Pos) {
	if c.Module.Test == nil {
		return "", Pos{}
	}
	i := slices.IndexFunc(c.Module.Test.Expect, func(e Expectation) bool { return e.match(c.Kernel) })
	if i < 0 {
		return "", Pos{}
	}
	e := c.Module.Test.Expect[i]
	return e.Verdict, e.Pos
}
