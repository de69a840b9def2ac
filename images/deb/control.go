package deb

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Control returns the fields of the package's control file. A field's further lines are joined with
// "\n", each without its leading space.
func (p *Package) Control() (map[string]string, error) {
	data, err := p.ControlFile("control")
	if err != nil {
		return nil, err
	}
	fields, err := parseFields(data)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	return fields, nil
}

// ControlFile returns a file of control.tar by name, such as "md5sums" or "postinst"; ErrNoFile if
// there is none.
func (p *Package) ControlFile(name string) ([]byte, error) {
	entries, err := newEntries(p.control, "control.tar", p.limits, p.limits.ControlBytes)
	if err != nil {
		return nil, err
	}
	data, err := readEntry(entries, name)
	return data, errors.Join(err, entries.Close())
}

func readEntry(entries *Entries, name string) ([]byte, error) {
	for {
		h, err := entries.Next()
		if err == io.EOF {
			return nil, fmt.Errorf("%w: %s", ErrNoFile, name)
		}
		if err != nil {
			return nil, err
		}
		if h.Name != name {
			continue
		}
		if h.Size > maxControlFile {
			return nil, fmt.Errorf("control file %s: %w of %d bytes", name, ErrLimit, maxControlFile)
		}
		return io.ReadAll(entries)
	}
}

// parseFields reads one stanza of deb822(5).
func parseFields(data []byte) (map[string]string, error) {
	fields := map[string]string{}
	last, number := "", 0
	for line := range bytes.Lines(data) {
		number++
		text := strings.TrimRight(string(line), " \t\r\n")
		switch {
		case text == "":
			if len(fields) > 0 {
				return fields, nil
			}
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if last == "" {
				return nil, fmt.Errorf("line %d: a continuation without a field", number)
			}
			fields[last] += "\n" + strings.TrimLeft(text, " \t")
		default:
			name, value, ok := strings.Cut(text, ":")
			if !ok || name == "" || strings.ContainsAny(name, " \t") {
				return nil, fmt.Errorf("line %d: %.40q is no field", number, text)
			}
			if _, dup := fields[name]; dup {
				return nil, fmt.Errorf("line %d: field %s occurs twice", number, name)
			}
			fields[name], last = strings.TrimSpace(value), name
		}
	}
	return fields, nil
}
