package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"
)

// Limits on what is read.
const (
	maxStatement = 32 << 20 // bytes; one about 1000 kernels takes some 3 MB
	maxDepth     = 32       // of nested objects and arrays
)

// checkJSON makes sure that data is one JSON value, not too big and not too
// deep, in which no object has a name twice: encoding/json would take the last
// one, others the first.
func checkJSON(data []byte, limit int) error {
	if len(data) > limit {
		return fmt.Errorf("more than %d bytes", limit)
	}
	if !utf8.Valid(data) {
		return errors.New("it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := checkValue(d, maxDepth); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}

func checkValue(d *json.Decoder, depth int) error {
	t, err := d.Token()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth == 0 {
		return fmt.Errorf("nested more than %d deep", maxDepth)
	}
	names := map[string]bool{}
	for d.More() {
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			name, _ := t.(string) // the decoder takes nothing else there
			if names[name] {
				return fmt.Errorf("%.64q is there twice", name)
			}
			names[name] = true
		}
		if err := checkValue(d, depth-1); err != nil {
			return err
		}
	}
	_, err = d.Token() // the end; the decoder knows that it fits
	return err
}

// exactFields reads an object that has these fields and no others, to the
// letter: encoding/json takes "Payload" for "payload".
func exactFields(data []byte, names ...string) (map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	for name := range fields {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("unknown field %.64q, known are %q", name, names)
		}
	}
	for _, name := range names {
		if fields[name] == nil {
			return nil, fmt.Errorf("field %q is missing", name)
		}
	}
	return fields, nil
}
