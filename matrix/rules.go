package matrix

import (
	"strings"

	"gopkg.in/yaml.v3"
)

// rules reads exclude or include.
func (d *decoder) rules(n *yaml.Node, what string) []Rule {
	var list []Rule
	d.list(n, what, func(element *yaml.Node) { list = append(list, d.rule(element, what)) })
	return list
}

func (d *decoder) rule(n *yaml.Node, what string) Rule {
	r := Rule{Pos: posOf(n)}
	axis := func(key string, into *[]Word, is check) func(*yaml.Node) {
		return func(n *yaml.Node) { *into = d.someWords(n, key, is) }
	}
	given := d.mapping(n, what, fields{
		"module":       axis("module", &r.Module, checkGlob),
		"version":      axis("version", &r.Version, checkVersions),
		"release":      axis("release", &r.Release, checkRelease),
		"flavor":       axis("flavor", &r.Flavor, checkGlob),
		"suite":        axis("suite", &r.Suite, checkGlob),
		"distribution": axis("distribution", &r.Distribution, checkGlob),
		"arch":         func(n *yaml.Node) { r.Arch = d.archPatterns(n) },
		"reason":       func(n *yaml.Node) { r.Reason = d.reason(n) },
	})
	reasons := 0
	if given["reason"] != nil {
		reasons = 1
	}
	if given != nil && len(given) == reasons {
		d.fail(r.Pos, "", what+": the rule names no axis, so it would match every cell", "give module, version, release, flavor, suite, distribution or arch")
	}
	return r
}

// archPatterns reads architectures by any of their names, or globs.
func (d *decoder) archPatterns(n *yaml.Node) []Word {
	words := d.someWords(n, "arch", checkGlob)
	for i, w := range words {
		if !isGlob(w.Text) {
			words[i] = d.canonical(w)
		}
	}
	return words
}

// reason reads free text, which becomes one line.
func (d *decoder) reason(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		d.wrongKind(n, "reason", aString)
		return ""
	}
	text := strings.Join(strings.Fields(n.Value), " ")
	if text == "" {
		return ""
	}
	if err := checkText(text); err != nil {
		d.invalid(n, "reason", err)
		return ""
	}
	return text
}
