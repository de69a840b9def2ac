package repo

import (
	"bytes"
	"fmt"
	"strings"
)

// maxStanza is how large a control file or Release may be.
const maxStanza = 16 << 20

// field is one of a stanza of deb822(5). Its value has the further lines as they are written.
type field struct{ name, value string }

// stanza keeps the order of its fields.
type stanza []field

// get returns a field's value, and "" where it is missing.
func (s stanza) get(name string) string {
	for _, f := range s {
		if strings.EqualFold(f.name, name) {
			return f.value
		}
	}
	return ""
}

func (s *stanza) add(name, value string) { *s = append(*s, field{name, value}) }

// bytes writes the stanza, without an empty line at its end.
func (s stanza) bytes() []byte {
	var b bytes.Buffer
	for _, f := range s {
		b.WriteString(f.name + ":")
		if f.value != "" && f.value[0] != '\n' {
			b.WriteByte(' ')
		}
		b.WriteString(f.value + "\n")
	}
	return b.Bytes()
}

// parseStanza reads one stanza; more than one is an error.
func parseStanza(text []byte) (stanza, error) {
	var s stanza
	ended := false
	for line := range bytes.Lines(text) {
		l := strings.TrimRight(string(line), " \t\r\n")
		switch {
		case l == "":
			ended = len(s) > 0
		case ended:
			return nil, fmt.Errorf("%w: %.40q follows an empty line", ErrFormat, l)
		case l[0] == '#':
		case l[0] == ' ' || l[0] == '\t':
			if len(s) == 0 {
				return nil, fmt.Errorf("%w: %.40q continues no field", ErrFormat, l)
			}
			s[len(s)-1].value += "\n" + l
		default:
			name, value, ok := strings.Cut(l, ":")
			if !ok || name == "" || strings.ContainsAny(name, " \t") {
				return nil, fmt.Errorf("%w: %.40q is no field", ErrFormat, l)
			}
			if s.has(name) {
				return nil, fmt.Errorf("%w: the field %s occurs twice", ErrFormat, name)
			}
			s.add(name, strings.TrimSpace(value))
		}
	}
	return s, nil
}

func (s stanza) has(name string) bool {
	for _, f := range s {
		if strings.EqualFold(f.name, name) {
			return true
		}
	}
	return false
}

// stanzas calls f for each stanza of an index.
func stanzas(text []byte, f func(stanza) error) error {
	for part := range bytes.SplitSeq(text, []byte("\n\n")) {
		s, err := parseStanza(part)
		if err != nil {
			return err
		}
		if len(s) == 0 {
			continue
		}
		if err := f(s); err != nil {
			return err
		}
	}
	return nil
}
