package apt

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// ErrLimit is wrapped by errors about input that is larger than a limit.
var ErrLimit = errors.New("over the limit")

// eachField calls f for the fields of one stanza of deb822(5), in order. A value's further lines
// follow the first after "\n", without their leading blank. Lines that are no field are an error.
func eachField(stanza []byte, f func(name, value string) error) error {
	var name string
	var value []byte
	flush := func() error {
		if name == "" {
			return nil
		}
		return f(name, string(value))
	}
	for line := range bytes.Lines(stanza) {
		line = bytes.TrimRight(line, " \t\r\n")
		switch {
		case len(line) == 0, line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if name == "" {
				return fmt.Errorf("%.40q continues no field", line)
			}
			value = append(append(value, '\n'), line[1:]...)
		default:
			if err := flush(); err != nil {
				return err
			}
			head, rest, ok := bytes.Cut(line, []byte(":"))
			if !ok || len(head) == 0 || bytes.ContainsAny(head, " \t") {
				return fmt.Errorf("%.40q is no field", line)
			}
			name, value = string(head), append(value[:0], bytes.TrimSpace(rest)...)
		}
	}
	return flush()
}

// isYes reads a boolean field.
func isYes(value string) bool { return strings.EqualFold(value, "yes") }
