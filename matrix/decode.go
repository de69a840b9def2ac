package matrix

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	// maxText is the longest string of a farm file in bytes.
	maxText = 4096
	// maxWords is the longest list of strings: a module's list is repeated for each of its versions.
	maxWords = 256
)

// decoder turns YAML nodes into values. What it cannot read it reports and leaves at its zero value.
type decoder struct{ reports }

// fields says by key what to do with the value.
type fields map[string]func(*yaml.Node)

// check says what is wrong with a string, as what would be right.
type check func(string) error

func posOf(n *yaml.Node) Pos { return Pos{n.Line, n.Column} }

// mapping reads a mapping whose keys are those of f, and returns the values that were given; nil where
// n is no mapping.
func (d *decoder) mapping(n *yaml.Node, what string, f fields) map[string]*yaml.Node {
	if n.Kind != yaml.MappingNode {
		d.wrongKind(n, what, "a mapping")
		return nil
	}
	given := make(map[string]*yaml.Node)
	for key, value := range d.pairs(n) {
		given[key.Value] = value
		read := f[key.Value]
		switch {
		case read == nil:
			d.unknownKey(key, f)
		case isNull(value):
			d.fail(posOf(value), "", fmt.Sprintf("%s has no value", key.Value), "give one or remove the key")
		default:
			read(value)
		}
	}
	return given
}

func (d *decoder) unknownKey(key *yaml.Node, f fields) {
	if d.full() {
		return
	}
	known := slices.Sorted(maps.Keys(f))
	hint := DidYouMean(key.Value, known)
	if hint == "" {
		hint = "known here: " + strings.Join(known, ", ")
	}
	d.fail(posOf(key), key.Value, "unknown key "+quote(key.Value), hint)
}

// pairs iterates over a mapping's keys and values, and reports keys that are no strings or come twice.
func (d *decoder) pairs(n *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(key, value *yaml.Node) bool) {
		first := make(map[string]int)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if d.full() {
				return
			}
			if key.Kind != yaml.ScalarNode {
				d.wrongKind(key, "key", "a word")
				continue
			}
			if line, ok := first[key.Value]; ok {
				d.fail(posOf(key), key.Value, fmt.Sprintf("duplicate key %s", quote(key.Value)), fmt.Sprintf("first on line %d", line))
				continue
			}
			first[key.Value] = key.Line
			if !yield(key, value) {
				return
			}
		}
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// aString is what a message calls a scalar that is text.
const aString = "a string"

func (d *decoder) wrongKind(n *yaml.Node, what, want string) {
	value, hint := "", ""
	if n.Kind == yaml.ScalarNode {
		value = n.Value
	}
	if n.Kind == yaml.ScalarNode && want == aString && n.ShortTag() == "!!bool" {
		hint = fmt.Sprintf("quote it: %q", clip(n.Value))
	}
	d.fail(posOf(n), value, fmt.Sprintf("%s: want %s, got %s", what, want, kindOf(n)), hint)
}

// kindOf names what a node is, with its value where it has one.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if isNull(n) {
			return "nothing"
		}
		return quote(n.Value)
	}
	return "something else"
}

// str reads a string that is not empty and has no control characters. A number or a date is taken as it is
// written, so that `version: 1.10` is "1.10".
func (d *decoder) str(n *yaml.Node, what string, is check) Word {
	if n.Kind != yaml.ScalarNode || isNull(n) || n.ShortTag() == "!!bool" {
		d.wrongKind(n, what, aString)
		return Word{}
	}
	err := checkText(n.Value)
	if err == nil && is != nil {
		err = is(n.Value)
	}
	if err != nil {
		d.invalid(n, what, err)
		return Word{}
	}
	return Word{n.Value, posOf(n)}
}

func (d *decoder) invalid(n *yaml.Node, what string, err error) {
	msg := err.Error()
	if !strings.Contains(msg, quote(n.Value)) {
		what += " " + quote(n.Value)
	}
	d.fail(posOf(n), n.Value, what+": "+msg, "")
}

func checkText(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("want a string that is not empty")
	case len(s) > maxText:
		return fmt.Errorf("want at most %d bytes", maxText)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("want no control characters")
	}
	return nil
}

// list calls read for every element of a list.
func (d *decoder) list(n *yaml.Node, what string, read func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		d.wrongKind(n, what, "a list")
		return
	}
	for _, element := range n.Content {
		if d.full() {
			return
		}
		read(element)
	}
}

// words reads a string or a list of strings without duplicates.
func (d *decoder) words(n *yaml.Node, what string, is check) []Word {
	if n.Kind == yaml.ScalarNode {
		if w := d.str(n, what, is); w.Text != "" {
			return []Word{w}
		}
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		d.wrongKind(n, what, "a string or a list of strings")
		return nil
	}
	if d.tooLong(n, what) {
		return nil
	}
	var words []Word
	first := make(map[string]int)
	for _, element := range n.Content {
		w := d.str(element, what, is)
		if w.Text == "" {
			continue
		}
		if d.unique(first, w, what) {
			words = append(words, w)
		}
	}
	return words
}

// unique notes w in first, and reports it where it is there already.
func (d *decoder) unique(first map[string]int, w Word, what string) bool {
	if line, ok := first[w.Text]; ok {
		d.fail(w.Pos, w.Text, fmt.Sprintf("%s: %s is given twice", what, quote(w.Text)), fmt.Sprintf("first on line %d", line))
		return false
	}
	first[w.Text] = w.Pos.Line
	return true
}

// someWords is words, of which there must be one.
func (d *decoder) someWords(n *yaml.Node, what string, is check) []Word {
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.fail(posOf(n), "", what+": the list is empty", "give at least one")
		return nil
	}
	return d.words(n, what, is)
}

// Texts returns the words' texts.
func Texts(words []Word) []string {
	var list []string
	for _, w := range words {
		list = append(list, w.Text)
	}
	return list
}

func (d *decoder) tooLong(n *yaml.Node, what string) bool {
	if len(n.Content) <= maxWords {
		return false
	}
	d.fail(posOf(n), "", fmt.Sprintf("%s: a list of %d", what, len(n.Content)), fmt.Sprintf("at most %d", maxWords))
	return true
}

// strs reads a list of strings that may repeat.
func (d *decoder) strs(n *yaml.Node, what string, is check) []string {
	var list []string
	if d.tooLong(n, what) {
		return nil
	}
	d.list(n, what, func(element *yaml.Node) {
		if w := d.str(element, what, is); w.Text != "" {
			list = append(list, w.Text)
		}
	})
	return list
}

// word reads a string that is one of allowed.
func (d *decoder) word(n *yaml.Node, what string, allowed []string) string {
	w := d.str(n, what, nil)
	if w.Text == "" {
		return ""
	}
	if !slices.Contains(allowed, w.Text) {
		hint := DidYouMean(w.Text, allowed)
		d.fail(w.Pos, w.Text, fmt.Sprintf("%s: %s is not one of %s", what, quote(w.Text), strings.Join(allowed, ", ")), hint)
		return ""
	}
	return w.Text
}

// integer reads a whole number from least to most.
func (d *decoder) integer(n *yaml.Node, what string, least, most int, into *int) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" {
		d.wrongKind(n, what, "a whole number")
		return
	}
	i, err := strconv.Atoi(n.Value)
	if err != nil || i < least || i > most {
		d.invalid(n, what, fmt.Errorf("want a number from %d to %d", least, most))
		return
	}
	*into = i
}

func (d *decoder) size(n *yaml.Node, what string, into *Size) {
	if n.Kind != yaml.ScalarNode {
		d.wrongKind(n, what, "a size such as 512MiB")
		return
	}
	size, err := ParseSize(n.Value)
	if err != nil {
		d.invalid(n, what, err)
		return
	}
	*into = size
}

func (d *decoder) duration(n *yaml.Node, what string, into *time.Duration) {
	if n.Kind != yaml.ScalarNode {
		d.wrongKind(n, what, "a duration such as 30m")
		return
	}
	t, err := time.ParseDuration(n.Value)
	if err != nil || t <= 0 {
		d.invalid(n, what, fmt.Errorf("want a duration such as 90s, 30m or 1h30m, greater than 0"))
		return
	}
	*into = t
}
