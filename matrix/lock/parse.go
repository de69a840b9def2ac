package lock

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"

	"github.com/kofarm/kofarm/matrix/kernel"
)

// Limits on a lock. One of 2,000 kernels has some 4 MB.
const (
	MaxFile       = 32 << 20 // bytes
	maxSeparators = 1 << 20  // commas and line ends: each value takes some 200 bytes of memory
	maxText       = 4096     // bytes of one value
	maxSize       = 16 << 30 // bytes of one package
)

// Error is a mistake in a lock.
type Error struct {
	File string
	Line int // from 1
	Msg  string
}

// Error prints FILE:LINE: MSG.
func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg) }

// Parse reads a lock; file is how messages call it. The error is an *Error, of
// the first mistake.
func Parse(file string, data []byte) (*Lock, error) {
	r := &reader{}
	l := r.lock(data)
	if r.err != nil {
		r.err.File, r.err.Line = file, max(1, r.err.Line)
		return nil, r.err
	}
	l.File = file
	return l, nil
}

// reader reads a lock until the first mistake; after that all it gives is zero.
type reader struct{ err *Error }

func (r *reader) fail(n *yaml.Node, format string, args ...any) {
	if r.err == nil {
		r.err = &Error{Line: n.Line, Msg: fmt.Sprintf(format, args...)}
	}
}

func clip(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "..."
	}
	return s
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

func (r *reader) document(data []byte) *yaml.Node {
	none := &yaml.Node{Line: 1}
	if len(data) > MaxFile || bytes.Count(data, []byte{','})+bytes.Count(data, []byte{'\n'}) > maxSeparators {
		r.fail(none, "the lock is larger than %d bytes or %d entries", MaxFile, maxSeparators)
		return nil
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	err := d.Decode(&doc)
	if err == nil {
		if err = d.Decode(&next); err == nil {
			err = errors.New("a second document")
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil || len(doc.Content) == 0 {
		msg := "the lock is empty"
		if err != nil && !errors.Is(err, io.EOF) {
			msg = err.Error()
			if m := yamlLine.FindStringSubmatch(msg); m != nil {
				none.Line, _ = strconv.Atoi(m[1])
				msg = msg[len(m[0]):]
			}
		}
		r.fail(none, "not valid: %s", clip(msg))
		return nil
	}
	r.simple(doc.Content[0])
	return doc.Content[0]
}

// simple refuses anchors, aliases and tags.
func (r *reader) simple(n *yaml.Node) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" || n.Style&yaml.TaggedStyle != 0 {
		r.fail(n, "anchors, aliases and tags are not taken")
	}
	for _, c := range n.Content {
		if r.err != nil {
			return
		}
		r.simple(c)
	}
}

// mapping gives a mapping's values by key. Each of required has to be there,
// and no other than those and optional may be.
func (r *reader) mapping(n *yaml.Node, required, optional []string) map[string]*yaml.Node {
	if n.Kind != yaml.MappingNode {
		r.fail(n, "want a mapping with %s", strings.Join(required, ", "))
		return nil
	}
	values := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		switch {
		case key.Kind != yaml.ScalarNode || !slices.Contains(required, key.Value) && !slices.Contains(optional, key.Value):
			r.fail(key, "unknown key %q; known here: %s", clip(key.Value), strings.Join(slices.Concat(required, optional), ", "))
		case values[key.Value] != nil:
			r.fail(key, "key %s is given twice", key.Value)
		}
		values[key.Value] = n.Content[i+1]
	}
	for _, key := range required {
		if values[key] == nil {
			r.fail(n, "%s is missing", key)
		}
	}
	return values
}

// list calls f for the elements of a list; nil has none.
func (r *reader) list(n *yaml.Node, what string, f func(*yaml.Node)) {
	if n == nil {
		return
	}
	if n.Kind != yaml.SequenceNode {
		r.fail(n, "%s: want a list", what)
		return
	}
	for _, e := range n.Content {
		if r.err != nil {
			return
		}
		f(e)
	}
}

// text reads a value that the expression matches as a whole; nil: any.
func (r *reader) text(n *yaml.Node, what string, want *regexp.Regexp) string {
	if n == nil || r.err != nil {
		return ""
	}
	if n.Kind != yaml.ScalarNode || n.Value == "" || len(n.Value) > maxText || strings.ContainsFunc(n.Value, unicode.IsControl) {
		r.fail(n, "%s: want a text of 1 to %d bytes without control characters", what, maxText)
		return ""
	}
	if want != nil && !want.MatchString(n.Value) {
		r.fail(n, "%s %q is not valid", what, clip(n.Value))
		return ""
	}
	return n.Value
}

func (r *reader) texts(n *yaml.Node, what string, want *regexp.Regexp) []string {
	var all []string
	r.list(n, what, func(e *yaml.Node) { all = append(all, r.text(e, what, want)) })
	return all
}

var (
	sha256Text  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	nameText    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._-]*$`)
	versionText = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+:~-]*$`)
	dateText    = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z$`)
	pathText    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9/+._~:%@=,-]*$`)
	suiteText   = regexp.MustCompile(`^([a-z][a-z0-9-]*) ([A-Za-z0-9][A-Za-z0-9._-]*) ([a-z0-9_]+)$`)
)

func (r *reader) lock(data []byte) *Lock {
	root := r.document(data)
	if r.err != nil {
		return nil
	}
	top := r.mapping(root, []string{"version", "modules", "suites"}, nil)
	if v := top["version"]; r.err == nil && v.Value != strconv.Itoa(version) {
		r.fail(v, "version %q; this kofarm reads version %d: make the lock anew with kofarm lock --update", clip(v.Value), version)
	}
	l := &Lock{}
	seen := map[string]bool{}
	r.list(top["modules"], "modules", func(n *yaml.Node) {
		m := r.module(n)
		r.once(n, seen, "source", m.Source)
		l.Modules = append(l.Modules, m)
	})
	r.list(top["suites"], "suites", func(n *yaml.Node) {
		s := r.suite(n)
		r.once(n, seen, "suite", s.String())
		l.Suites = append(l.Suites, s)
	})
	return l
}

// once reports a name that was there before.
func (r *reader) once(n *yaml.Node, seen map[string]bool, what, name string) {
	if key := what + " " + name; seen[key] {
		r.fail(n, "%s %q is there twice", what, clip(name))
	} else {
		seen[key] = true
	}
}

func (r *reader) module(n *yaml.Node) *Module {
	v := r.mapping(n, []string{"source"}, []string{"sha256", "deb", "needs"})
	m := &Module{Source: r.text(v["source"], "source", nil), Needs: r.texts(v["needs"], "needs", nil), Line: n.Line}
	switch deb := v["deb"]; {
	case (deb == nil) == (v["sha256"] == nil):
		r.fail(n, "want one of sha256 and deb")
	case deb != nil:
		m.Deb = r.pkg(deb, nil)
		m.SHA256 = m.Deb.SHA256
	default:
		m.SHA256 = r.text(v["sha256"], "sha256", sha256Text)
	}
	return m
}

// pkg reads a package, whose date may be its pocket's.
func (r *reader) pkg(n *yaml.Node, pockets map[string]string) *Package {
	v := r.mapping(n, []string{"name", "version", "arch", "size", "sha256", "pocket", "path"}, []string{"date"})
	p := &Package{
		Name: r.text(v["name"], "name", nameText), Version: r.text(v["version"], "version", versionText),
		Arch: r.text(v["arch"], "arch", nameText), SHA256: r.text(v["sha256"], "sha256", sha256Text),
		Pocket: r.text(v["pocket"], "pocket", nameText), Date: r.text(v["date"], "date", dateText),
		Path: r.text(v["path"], "path", pathText),
	}
	if r.err != nil {
		return p
	}
	if path.Clean(p.Path) != p.Path || slices.Contains(strings.Split(p.Path, "/"), "..") {
		r.fail(v["path"], "path %q is not a plain path below a mirror", clip(p.Path))
	}
	var err error
	if p.Size, err = strconv.ParseInt(v["size"].Value, 10, 64); err != nil || p.Size < 1 || p.Size > maxSize {
		r.fail(v["size"], "size %q: want 1 to %d bytes", clip(v["size"].Value), int64(maxSize))
	}
	if p.Date == "" {
		p.Date = pockets[p.Pocket]
	}
	if p.Date == "" && r.err == nil {
		r.fail(n, "%s has no date, and its pocket %s has none either", p.Name, p.Pocket)
	}
	return p
}

// suiteReader reads one suite.
type suiteReader struct {
	*reader
	packages   map[string]*Package   // by each of their names
	ambiguous  map[string]bool       // names of several packages
	toolchains map[string][]*Package // by name
	extras     map[string]Extra
}

func (r *reader) suite(n *yaml.Node) *Suite {
	v := r.mapping(n, []string{"suite", "asks", "kernels", "pockets", "packages"}, []string{"toolchains", "extras"})
	s := &Suite{Line: n.Line, Asks: r.texts(v["asks"], "asks", nil)}
	name := r.text(v["suite"], "suite", suiteText)
	if r.err != nil {
		return s
	}
	m := suiteText.FindStringSubmatch(name)
	s.Distribution, s.Name, s.Arch = m[1], m[2], m[3]
	sr := &suiteReader{reader: r, packages: map[string]*Package{}, ambiguous: map[string]bool{}, toolchains: map[string][]*Package{}, extras: map[string]Extra{}}
	sr.readPackages(v["packages"], r.pockets(v["pockets"]))
	seen := map[string]bool{}
	r.list(v["toolchains"], "toolchains", func(n *yaml.Node) {
		t := r.mapping(n, []string{"name", "packages"}, nil)
		name := r.text(t["name"], "name", nil)
		r.once(n, seen, "toolchain", name)
		sr.toolchains[name] = sr.refs(t["packages"])
	})
	r.list(v["extras"], "extras", func(n *yaml.Node) {
		t := r.mapping(n, []string{"name", "build", "packages"}, nil)
		name := r.text(t["name"], "name", nil)
		r.once(n, seen, "extra", name)
		sr.extras[name] = Extra{r.text(t["build"], "build", nil), sr.refs(t["packages"])}
	})
	r.list(v["kernels"], "kernels", func(n *yaml.Node) {
		k := sr.kernel(n)
		r.once(n, seen, fmt.Sprintf("kernel (own: %v)", k.Own != nil), k.Release)
		s.Kernels = append(s.Kernels, k)
	})
	return s
}

func (r *reader) pockets(n *yaml.Node) map[string]string {
	pockets := map[string]string{}
	if n == nil || n.Kind != yaml.MappingNode {
		if n != nil {
			r.fail(n, "pockets: want a mapping")
		}
		return pockets
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := r.text(n.Content[i], "pocket", nameText)
		if pockets[name] != "" {
			r.fail(n.Content[i], "pocket %s is there twice", name)
		}
		pockets[name] = r.text(n.Content[i+1], "date", dateText)
	}
	return pockets
}

func (r *suiteReader) readPackages(n *yaml.Node, pockets map[string]string) {
	r.list(n, "packages", func(n *yaml.Node) {
		p := r.pkg(n, pockets)
		called := p.called()
		if r.packages[called[2]] != nil {
			r.fail(n, "package %s is there twice", clip(called[2]))
		}
		for _, name := range called {
			r.ambiguous[name] = r.packages[name] != nil
			r.packages[name] = p
		}
	})
}

// refs reads a list of packages.
func (r *suiteReader) refs(n *yaml.Node) []*Package {
	var pkgs []*Package
	r.list(n, "packages", func(n *yaml.Node) {
		name := r.text(n, "package", nil)
		p := r.packages[name]
		switch {
		case r.err != nil:
		case p == nil:
			r.fail(n, "package %q is not in the suite's packages", clip(name))
		case r.ambiguous[name]:
			r.fail(n, "there are several packages %q: say which, as NAME=VERSION or NAME:ARCH=VERSION", clip(name))
		}
		pkgs = append(pkgs, p)
	})
	return pkgs
}

func (r *suiteReader) kernel(n *yaml.Node) *Kernel {
	v := r.mapping(n, []string{"release"}, []string{"own", "headers", "image", "toolchain", "extras"})
	k := &Kernel{Release: r.text(v["release"], "release", nil), Line: n.Line, Headers: r.refs(v["headers"]), Image: r.refs(v["image"])}
	if r.err != nil {
		return k
	}
	if _, err := kernel.Parse(k.Release); err != nil {
		r.fail(v["release"], "%s", clip(err.Error()))
	}
	if v["own"] != nil {
		own := r.mapping(v["own"], []string{"packages", "headers"}, nil)
		k.Own = &Own{r.texts(own["packages"], "packages", nil), r.texts(own["headers"], "headers", sha256Text)}
	}
	if t := v["toolchain"]; t != nil {
		if k.Toolchain = r.toolchains[r.text(t, "toolchain", nil)]; len(k.Toolchain) == 0 {
			r.fail(t, "toolchain %q is not among the suite's, or empty", clip(t.Value))
		}
	} else if v["extras"] != nil {
		r.fail(v["extras"], "extras without a toolchain")
	}
	builds := map[string]bool{}
	r.list(v["extras"], "extras", func(n *yaml.Node) {
		e, ok := r.extras[r.text(n, "extras", nil)]
		if !ok {
			r.fail(n, "extra %q is not among the suite's", clip(n.Value))
		}
		r.once(n, builds, "build", e.Build)
		k.Extras = append(k.Extras, e)
	})
	return k
}
