package matrix

import (
	"fmt"
	"slices"

	"github.com/kofarm/kofarm/matrix/kernel"
	"gopkg.in/yaml.v3"
)

const (
	defaultDistribution = "debian"
	defaultArch         = "x86_64"
	// maxLatest is the largest N of latest: N.
	maxLatest = 1000
)

var (
	setKeys    = []string{"suite", "suites", "releases", "flavors"}
	customKeys = []string{"release", "headers", "toolchain"}
)

func (d *decoder) kernels(n *yaml.Node) []KernelEntry {
	var list []KernelEntry
	d.list(n, "kernels", func(element *yaml.Node) {
		if hasKey(element, customKeys) {
			list = append(list, KernelEntry{Custom: d.customKernel(element)})
		} else {
			list = append(list, KernelEntry{Set: d.kernelSet(element)})
		}
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.fail(posOf(n), "", "kernels: the list is empty", "list what to build for")
	}
	return list
}

func hasKey(n *yaml.Node, keys []string) bool {
	if n.Kind != yaml.MappingNode {
		return false
	}
	for i := 0; i < len(n.Content); i += 2 {
		if slices.Contains(keys, n.Content[i].Value) {
			return true
		}
	}
	return false
}

func (d *decoder) kernelSet(n *yaml.Node) *KernelSet {
	set := &KernelSet{
		Distribution: defaultDistribution,
		Releases:     []Selector{{Latest: 1, Word: Word{Pos: posOf(n)}}},
		Arch:         []Word{{defaultArch, posOf(n)}},
		Pos:          posOf(n),
	}
	suites := func(n *yaml.Node) { set.Suites = d.someWords(n, "suite", checkSuite) }
	given := d.mapping(n, "kernels", fields{
		"distribution": func(n *yaml.Node) { set.Distribution = d.str(n, "distribution", checkDistribution).Text },
		"suites":       suites,
		"suite":        suites,
		"releases":     func(n *yaml.Node) { set.Releases = d.selectors(n) },
		"flavors":      func(n *yaml.Node) { set.Flavors = d.someWords(n, "flavor", checkGlob) },
		"arch":         func(n *yaml.Node) { set.Arch = d.archs(n) },
	})
	switch {
	case given == nil:
	case given["suite"] != nil && given["suites"] != nil:
		d.fail(posOf(n), "", "both suite and suites", "give one of them")
	case given["suite"] == nil && given["suites"] == nil:
		d.fail(posOf(n), "", "suites is missing", "give the suites whose kernels to build for, or release and headers of a kernel of one's own")
	}
	return set
}

// archs reads one or several architectures by any of their names.
func (d *decoder) archs(n *yaml.Node) []Word {
	words := d.someWords(n, "arch", nil)
	var list []Word
	first := make(map[string]int)
	for _, w := range words {
		w = d.canonical(w)
		if w.Text != "" && d.unique(first, w, "arch") {
			list = append(list, w)
		}
	}
	return list
}

// canonical returns the word with the architecture's canonical name, or reports that there is none.
func (d *decoder) canonical(w Word) Word {
	arch, ok := kernel.CanonicalArch(w.Text)
	if !ok && w.Text != "" {
		d.fail(w.Pos, w.Text, "unknown architecture "+quote(w.Text), oneOf(w.Text, kernel.ArchNames()))
	}
	return Word{arch, w.Pos}
}

// selectors reads what chooses releases: one selector or a list.
func (d *decoder) selectors(n *yaml.Node) []Selector {
	if n.Kind != yaml.SequenceNode {
		return d.selector(n)
	}
	if len(n.Content) == 0 {
		d.fail(posOf(n), "", "releases: the list is empty", `give releases, globs, ranges or {latest: N}`)
	}
	var list []Selector
	first := make(map[string]int)
	for _, element := range n.Content {
		for _, s := range d.selector(element) {
			if line, ok := first[s.String()]; ok {
				d.fail(s.Pos, s.Text, fmt.Sprintf("releases: %s is given twice", s), fmt.Sprintf("first on line %d", line))
				continue
			}
			first[s.String()] = s.Pos.Line
			list = append(list, s)
		}
	}
	return list
}

// selector reads one selector; the result is empty after an error.
func (d *decoder) selector(n *yaml.Node) []Selector {
	if n.Kind == yaml.ScalarNode {
		w := d.str(n, "releases", checkRelease)
		if w.Text == "" {
			return nil
		}
		return []Selector{{Word: w}}
	}
	if n.Kind != yaml.MappingNode {
		d.wrongKind(n, "releases", "a release, a glob, a range or {latest: N}")
		return nil
	}
	s := Selector{Word: Word{Pos: posOf(n)}}
	given := d.mapping(n, "releases", fields{
		"latest": func(n *yaml.Node) { d.integer(n, "latest", 1, maxLatest, &s.Latest) },
		"of":     func(n *yaml.Node) { s.Text = d.str(n, "of", checkRelease).Text },
	})
	d.required(n, given, "latest", "give {latest: N}")
	if s.Latest == 0 || given["of"] != nil && s.Text == "" {
		return nil
	}
	return []Selector{s}
}

// String is the selector as a message shows it.
func (s Selector) String() string {
	switch {
	case s.Latest == 0:
		return quote(s.Text)
	case s.Text == "":
		return fmt.Sprintf("latest: %d", s.Latest)
	}
	return fmt.Sprintf("latest: %d of %s", s.Latest, quote(s.Text))
}

func (d *decoder) customKernel(n *yaml.Node) *CustomKernel {
	k := &CustomKernel{Pos: posOf(n)}
	f := fields{
		"release":   func(n *yaml.Node) { k.Release = d.str(n, "release", checkOneRelease).Text },
		"arch":      func(n *yaml.Node) { k.Arch = d.canonical(d.str(n, "arch", nil)).Text },
		"headers":   func(n *yaml.Node) { k.Headers = Texts(d.someWords(n, "headers", checkPath)) },
		"toolchain": func(n *yaml.Node) { k.Toolchain = d.toolchain(n) },
	}
	for _, key := range append(setKeys, "distribution") {
		f[key] = func(n *yaml.Node) {
			d.fail(posOf(n), "", key+" does not go with a kernel of one's own",
				"release, headers and toolchain describe one; to choose kernels of an archive use releases")
		}
	}
	given := d.mapping(n, "kernels", f)
	d.required(n, given, "release", "give what uname -r prints")
	d.required(n, given, "headers", "give a directory, a .deb or a .rpm; to choose a kernel of an archive use releases")
	d.customArch(k, given["arch"])
	return k
}

// checkOneRelease accepts a whole release.
func checkOneRelease(s string) error {
	_, err := kernel.Parse(s)
	return err
}

// customArch applies the default of arch, and reports where release and arch disagree.
func (d *decoder) customArch(k *CustomKernel, given *yaml.Node) {
	own, known := kernel.CanonicalArch(kernel.Release(k.Release).Arch())
	switch {
	case given != nil && known && k.Arch != "" && k.Arch != own:
		d.fail(posOf(given), given.Value, fmt.Sprintf("arch %s: the release %s is one of %s", quote(given.Value), quote(k.Release), own), "")
	case given == nil && known:
		k.Arch = own
	case given == nil:
		k.Arch = defaultArch
	}
}

func (d *decoder) toolchain(n *yaml.Node) Toolchain {
	var t Toolchain
	d.mapping(n, "toolchain", fields{
		"distribution": func(n *yaml.Node) { t.Distribution = d.str(n, "distribution", checkDistribution).Text },
		"suite":        func(n *yaml.Node) { t.Suite = d.str(n, "suite", checkSuite).Text },
		"packages":     func(n *yaml.Node) { t.Packages = d.words(n, "packages", checkPackage) },
	})
	return t
}
