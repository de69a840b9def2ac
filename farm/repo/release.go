package repo

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// release is what a Release file says that an update needs.
type release struct {
	date       time.Time
	components []string
	archs      []string
	files      map[string]digest // by path below the suite
}

// dateFormat is that of a Release's Date.
const dateFormat = "Mon, 02 Jan 2006 15:04:05 UTC"

func parseRelease(text []byte) (*release, error) {
	s, err := parseStanza(text)
	if err != nil {
		return nil, err
	}
	r := &release{components: strings.Fields(s.get("Components")), archs: strings.Fields(s.get("Architectures")), files: map[string]digest{}}
	if r.date, err = time.Parse(dateFormat, s.get("Date")); err != nil {
		return nil, fmt.Errorf("%w: Date: %w", ErrFormat, err)
	}
	for line := range strings.Lines(s.get("SHA256")) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) != 3 || !isSHA256(words[0]) || !isLocal(words[2]) {
			return nil, fmt.Errorf("%w: %.100q is not \"sha256 size path\"", ErrFormat, line)
		}
		size, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("%w: size %q of %s", ErrFormat, words[1], words[2])
		}
		r.files[words[2]] = digest{words[0], size}
	}
	return r, nil
}

// isSHA256 says whether s is one, in lower-case hex.
func isSHA256(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// isLocal says whether a path stays below its folder, and is written in the only way.
func isLocal(p string) bool {
	return p != "" && p[0] != '/' && path.Clean(p) == p && p != ".." && !strings.HasPrefix(p, "../")
}

// others are the files of other components.
func (r *release) others(component string) map[string]digest {
	other := map[string]digest{}
	if r != nil {
		for p, d := range r.files {
			if !strings.HasPrefix(p, component+"/") {
				other[p] = d
			}
		}
	}
	return other
}

// byHash is where an index lies under its sha256, for clients that have read the Release before.
func byHash(p string, d digest) string {
	return path.Join(path.Dir(p), "by-hash", "SHA256", d.sha256)
}

// text writes the Release file.
func (r *release) text(a *APT) []byte {
	var s stanza
	for _, f := range []field{
		{"Origin", a.Origin}, {"Label", a.Label}, {"Suite", a.Suite}, {"Codename", a.codename()},
		{"Date", r.date.UTC().Format(dateFormat)}, {"Acquire-By-Hash", "yes"},
		{"Architectures", strings.Join(r.archs, " ")}, {"Components", strings.Join(r.components, " ")},
		{"Description", a.Description},
	} {
		if f.value != "" {
			s.add(f.name, f.value)
		}
	}
	var list strings.Builder
	for _, p := range sortedKeys(r.files) {
		fmt.Fprintf(&list, "\n %s %d %s", r.files[p].sha256, r.files[p].size, p)
	}
	s.add("SHA256", list.String())
	return s.bytes()
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// plainRelease takes the text out of an InRelease without asking who signed it.
func plainRelease(inRelease []byte) []byte {
	_, text, _ := bytes.Cut(inRelease, []byte("\n\n"))
	text, _, _ = bytes.Cut(text, []byte("\n-----BEGIN PGP SIGNATURE-----"))
	return bytes.ReplaceAll(text, []byte("\n- "), []byte("\n"))
}

// current reads the Release that clients see: its text, what it says, and whether it is to be trusted.
// It is nil where there is none, or one that cannot be read.
func (u *aptUpdate) current() (text []byte, r *release, trusted bool, err error) {
	in, err := u.t.read(u.file("InRelease"), maxStanza)
	if err != nil {
		return nil, nil, false, err
	}
	plain, err := u.t.read(u.file("Release"), maxStanza)
	if err != nil {
		return nil, nil, false, err
	}
	switch {
	case in == nil:
		text, trusted = plain, u.a.Signer == nil
	case u.a.Signer == nil:
		text = plainRelease(in)
	default:
		verified, verr := u.a.Signer.Verify(in)
		if text, trusted = verified, verr == nil; !trusted {
			text = plainRelease(in)
		}
	}
	if text == nil {
		return nil, nil, false, nil
	}
	r, err = parseRelease(text)
	if errors.Is(err, ErrFormat) {
		return nil, nil, false, nil
	}
	return text, r, trusted, err
}
