package matrix

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

const (
	// MaxFile is the largest farm file that Parse reads, in bytes.
	MaxFile = 8 << 20
	// maxSeparators is how many commas and line ends it may have: a YAML value takes some 200 bytes of memory,
	// and (but for nesting, which the YAML parser limits) no two values do without one between them, or a colon.
	maxSeparators = 1 << 20
)

// Parse reads a farm file; name is how messages call it. It reports every mistake at once: the error joins
// *Error values, each with line and column, and then the Farm is nil. Anchors, aliases and tags are refused.
func Parse(name string, data []byte) (*Farm, []Warning, error) {
	d := &decoder{reports{file: name}}
	root := d.document(data)
	if root == nil {
		warnings, err := d.result()
		return nil, warnings, err
	}
	f := d.farm(root)
	warnings, err := d.result()
	if err != nil {
		return nil, warnings, err
	}
	return f, warnings, nil
}

// document returns the root of the file's only document, or nil after an error.
func (d *decoder) document(data []byte) *yaml.Node {
	if len(data) > MaxFile {
		d.fail(Pos{}, "", fmt.Sprintf("the file is larger than %v", Size(MaxFile)), "")
		return nil
	}
	if bytes.Count(data, []byte{','})+bytes.Count(data, []byte{'\n'}) > maxSeparators {
		d.fail(Pos{}, "", fmt.Sprintf("the file has more than %d entries", maxSeparators), "split it")
		return nil
	}
	lines := &lineReader{rest: data}
	decoder := yaml.NewDecoder(lines)
	var doc, next yaml.Node
	err := decoder.Decode(&doc)
	switch {
	case errors.Is(err, io.EOF):
		d.fail(Pos{}, "", "the file is empty", "it needs modules and kernels")
		return nil
	case err != nil:
		d.syntax(err, data, lines.count)
		return nil
	}
	switch err := decoder.Decode(&next); {
	case err == nil:
		d.fail(posOf(&next), "", "a second document", "a farm file is one document; remove the ---")
		return nil
	case !errors.Is(err, io.EOF):
		d.syntax(err, data, lines.count)
		return nil
	}
	if len(doc.Content) == 0 {
		d.fail(posOf(&doc), "", "the file is empty", "it needs modules and kernels")
		return nil
	}
	d.plain(doc.Content[0])
	if len(d.errs) > 0 {
		return nil
	}
	return doc.Content[0]
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// syntax reports an error of the YAML parser. It knows no column, and for its line it says where the
// construct begins that it could not finish; how many lines it has read until then is closer to the
// mistake, unless it looked for an end in vain.
func (d *decoder) syntax(err error, data []byte, lines int) {
	msg, begin := strings.TrimPrefix(err.Error(), "yaml: "), 0
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		begin, _ = strconv.Atoi(m[1])
		msg = msg[len(m[0]):]
	}
	if strings.Contains(msg, "unexpected end of stream") && begin > 0 {
		lines = begin
	}
	at, hint := Pos{Line: lines}, ""
	if m := tabbed.FindIndex(line(data, lines)); m != nil {
		at.Column, hint = m[1], "YAML takes no tabs: indent by spaces"
	}
	d.fail(at, "", "not valid YAML: "+msg, hint)
}

// tabbed is a tab that indents a line, up to it.
var tabbed = regexp.MustCompile(`^ *\t`)

// line gives the n-th line, from 1.
func line(data []byte, n int) []byte {
	all := bytes.SplitN(data, []byte{'\n'}, n+1)
	if n < 1 || n > len(all) {
		return nil
	}
	return all[n-1]
}

// lineReader hands out a line at a time and counts them.
type lineReader struct {
	rest  []byte
	inner bool // the last line is not handed out in full
	count int
}

func (r *lineReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	if !r.inner {
		r.count++
	}
	end := bytes.IndexByte(r.rest, '\n') + 1
	if end == 0 {
		end = len(r.rest)
	}
	n := copy(p, r.rest[:end])
	r.inner = n < end
	r.rest = r.rest[n:]
	return n, nil
}

// plain reports anchors, aliases and tags: small files that mean large ones, and types that no key wants.
func (d *decoder) plain(n *yaml.Node) {
	switch {
	case d.full():
		return
	case n.Kind == yaml.AliasNode:
		d.fail(posOf(n), n.Value, "alias "+quote(n.Value), "anchors and aliases are not supported: repeat the value")
	case n.Anchor != "":
		d.fail(posOf(n), n.Anchor, "anchor "+quote(n.Anchor), "anchors and aliases are not supported: repeat the value")
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(posOf(n), n.Tag, "tag "+quote(n.Tag), "tags are not supported")
	}
	for _, child := range n.Content {
		d.plain(child)
	}
}

func (d *decoder) farm(root *yaml.Node) *Farm {
	f := &Farm{
		File:     d.file,
		Archives: defaultArchives(),
		Output:   Output{Directory: "dist"},
		Limits:   defaultLimits(),
		Build:    Build{Retries: 2},
	}
	given := d.mapping(root, "farm file", fields{
		"modules":  func(n *yaml.Node) { f.Modules = d.modules(n) },
		"kernels":  func(n *yaml.Node) { f.Kernels = d.kernels(n) },
		"exclude":  func(n *yaml.Node) { f.Exclude = d.rules(n, "exclude") },
		"include":  func(n *yaml.Node) { f.Include = d.rules(n, "include") },
		"archives": func(n *yaml.Node) { d.archives(n, f.Archives) },
		"output":   func(n *yaml.Node) { d.output(n, &f.Output) },
		"limits":   func(n *yaml.Node) { d.limits(n, &f.Limits) },
		"build":    func(n *yaml.Node) { d.build(n, &f.Build) },
		"cache":    func(n *yaml.Node) { d.cache(n, &f.Cache) },
		"test":     func(n *yaml.Node) { f.Test = d.test(n) },
	})
	if given == nil {
		return f
	}
	d.required(root, given, "modules", "list what to build")
	d.required(root, given, "kernels", "list what to build for")
	d.applyDefaults(f)
	d.outputDefaults(&f.Output)
	d.signedTest(f)
	d.duplicateModules(f.Modules)
	d.knownArchives(f)
	return f
}

// required reports a key that is not given, unless it was given with a mistake that is reported already.
func (d *decoder) required(n *yaml.Node, given map[string]*yaml.Node, key, hint string) {
	missing := given[key] == nil
	for other := range given {
		if len(other) <= maxNearest && distance(other, key) <= 2 {
			missing = false
		}
	}
	if missing {
		d.fail(posOf(n), "", key+" is missing", hint)
	}
}

// applyDefaults applies the defaults that depend on other parts of the file.
func (d *decoder) applyDefaults(f *Farm) {
	for _, entry := range f.Kernels {
		if entry.Custom != nil {
			d.defaultToolchain(entry.Custom, f.firstSet())
		}
	}
	distribution, suite := f.firstArchive()
	for _, m := range f.Modules {
		if m.Timeout == 0 {
			m.Timeout = f.Limits.Timeout
		}
		if m.Source.Deb != "" {
			d.defaultDeb(&m.Source, distribution, suite)
		}
	}
}

// firstArchive returns distribution and suite of the first entry of kernels that has them; "debian" and
// "" where none has.
func (f *Farm) firstArchive() (distribution, suite string) {
	for _, entry := range f.Kernels {
		switch {
		case entry.Set != nil && len(entry.Set.Suites) > 0:
			return entry.Set.Distribution, entry.Set.Suites[0].Text
		case entry.Custom != nil && entry.Custom.Toolchain.Suite != "":
			return entry.Custom.Toolchain.Distribution, entry.Custom.Toolchain.Suite
		}
	}
	return defaultDistribution, ""
}

// defaultToolchain takes the suite of the first archive kernels where the entry names none.
func (d *decoder) defaultToolchain(k *CustomKernel, set *KernelSet) {
	t := &k.Toolchain
	if set != nil && len(set.Suites) > 0 {
		if t.Distribution == "" {
			t.Distribution = set.Distribution
		}
		if t.Suite == "" && t.Distribution == set.Distribution {
			t.Suite = set.Suites[0].Text
		}
	}
	if t.Distribution == "" {
		t.Distribution = defaultDistribution
	}
	if t.Suite == "" && (set == nil || len(set.Suites) > 0) {
		d.fail(k.Pos, "", "toolchain.suite is missing", "no archive kernels of its distribution are listed to take it from")
	}
}

func (d *decoder) defaultDeb(s *Source, distribution, suite string) {
	if s.Distribution == "" {
		s.Distribution = distribution
	}
	if s.Suite == "" && s.Distribution == distribution {
		s.Suite = suite
	}
	if s.Suite == "" && suite != "" { // without any suite at all kernels has errors of its own
		d.fail(s.Pos, s.Deb, fmt.Sprintf("the suite of deb %s is missing", quote(s.Deb)), "no kernels of its distribution are listed to take it from")
	}
}

// duplicateModules reports module versions that come twice, as far as their names are known.
func (r *reports) duplicateModules(modules []*ModuleVersion) {
	type key struct{ name, version string }
	first := make(map[key]Pos)
	for _, m := range modules {
		k := key{m.Name, m.Version}
		if m.Name == "" || m.Version == "" {
			continue
		}
		if pos, ok := first[k]; ok {
			r.fail(m.Pos, m.Name, fmt.Sprintf("module %s %s is given twice", m.Name, m.Version), fmt.Sprintf("first at %d:%d", pos.Line, pos.Column))
			continue
		}
		first[k] = m.Pos
	}
}
