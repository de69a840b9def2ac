package rebuild

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Difference is a place where a rebuilt file is not what it was.
type Difference struct {
	Member  string `json:"member,omitzero"`  // path in a package
	Section string `json:"section,omitzero"` // of an ELF file
	Offset  int64  `json:"offset"`           // of the first byte that differs, in the section or else in the file
	// Sizes are in bytes, before and now; -1 where there is no such section or member.
	Sizes [2]int64 `json:"sizes"`
	// What is there, as a Go string where it is text, else in hex.
	Was string `json:"was,omitzero"`
	Now string `json:"now,omitzero"`
	// Note says what is known of such a place, or "".
	Note string `json:"note,omitzero"`

	was, now []byte // whole
}

// Cause is a likely reason of a difference.
type Cause struct {
	Kind   string `json:"kind"` // a Variation, or one of the constants below
	Detail string `json:"detail"`
	// Proven tells that rebuilds with and without this one cause have shown it. What
	// is not proven was read in the bytes.
	Proven bool `json:"proven"`
}

// Kinds of causes beside the variations.
const (
	CauseRandom   = "random"   // two builds that see the same differ
	CauseRace     = "race"     // they differ only where make works in parallel
	CauseOutside  = "outside"  // kofarm's own user, umask, time zone, locale, folder, or the runtime
	CauseTogether = "together" // no variation alone makes a difference
	CauseInputs   = "inputs"   // what was built differs from any rebuild, and rebuilds do not differ
	CausePath     = "path"
	CauseBuildID  = "build-id"
	CauseBTF      = "btf"
)

// maxDifferences bounds what is listed of one file.
const maxDifferences = 24

// explain lists where two files differ: sections of ELF files, else bytes.
func explain(was, now []byte) []Difference {
	if bytes.Equal(was, now) {
		return nil
	}
	a, errA := elf.NewFile(bytes.NewReader(was))
	b, errB := elf.NewFile(bytes.NewReader(now))
	var all []Difference
	if errA == nil && errB == nil {
		all = sections(a, b)
	}
	if len(all) == 0 {
		all = []Difference{newDifference(was, now)}
	}
	slices.SortStableFunc(all, func(a, b Difference) int { return a.rank() - b.rank() })
	return all[:min(len(all), maxDifferences)]
}

// rank puts what only follows from other differences behind them.
func (d Difference) rank() int {
	switch {
	case d.Section == ".note.gnu.build-id":
		return 2
	case d.Note != "":
		return 1
	}
	return 0
}

func newDifference(was, now []byte) Difference {
	at := firstDifference(was, now)
	return Difference{Offset: int64(at), Sizes: [2]int64{int64(len(was)), int64(len(now))}, Was: excerpt(was, at), Now: excerpt(now, at), was: was, now: now}
}

func firstDifference(a, b []byte) int {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	return i
}

// sectionKey tells sections of the same name apart.
type sectionKey struct {
	name string
	n    int
}

// contents reads all sections that have some, in the file's order.
func contents(f *elf.File) (order []sectionKey, data map[sectionKey][]byte) {
	data = map[sectionKey][]byte{}
	seen := map[string]int{}
	for _, s := range f.Sections {
		k := sectionKey{s.Name, seen[s.Name]}
		seen[s.Name]++
		var d []byte
		switch s.Type {
		case elf.SHT_NULL:
			continue
		case elf.SHT_NOBITS: // its size is all there is
			d = []byte(strconv.FormatUint(s.Size, 10) + " bytes")
		default:
			var err error
			if d, err = s.Data(); err != nil {
				continue
			}
		}
		order, data[k] = append(order, k), d
	}
	return order, data
}

func sections(a, b *elf.File) []Difference {
	orderA, was := contents(a)
	orderB, now := contents(b)
	var all []Difference
	for _, k := range orderA {
		old := was[k]
		d := Difference{Sizes: [2]int64{int64(len(old)), -1}, was: old}
		if other, ok := now[k]; ok {
			if bytes.Equal(old, other) {
				continue
			}
			d = newDifference(old, other)
		}
		d.Section = k.name
		d.Note = note(d, a, b)
		all = append(all, d)
	}
	for _, k := range orderB {
		if _, ok := was[k]; !ok {
			all = append(all, Difference{Section: k.name, Sizes: [2]int64{-1, int64(len(now[k]))}, now: now[k]})
		}
	}
	return all
}

// note says what a section's difference may mean.
func note(d Difference, a, b *elf.File) string {
	switch {
	case d.Section == ".note.gnu.build-id":
		return "a hash of all that was linked: it follows from any other difference"
	case d.Section == ".symtab" && sameSymbols(a, b):
		return "the same symbols in another order"
	case d.Section == ".strtab" && sameParts(d.was, d.now, 0):
		return "the same names in another order"
	case sameParts(d.was, d.now, 0) && bytes.Count(d.was, []byte{0}) > 1 && printable(d.was):
		return "the same strings in another order"
	case strings.HasPrefix(d.Section, ".rela"):
		return "relocations: they follow what they refer to"
	}
	return ""
}

// sameParts tells whether the same parts are in another order.
func sameParts(a, b []byte, sep byte) bool {
	if len(a) != len(b) {
		return false
	}
	x, y := bytes.Split(a, []byte{sep}), bytes.Split(b, []byte{sep})
	slices.SortFunc(x, bytes.Compare)
	slices.SortFunc(y, bytes.Compare)
	return slices.EqualFunc(x, y, bytes.Equal)
}

// sameSymbols tells whether the same symbols are in another order, either of the
// table or of the places that they stand for.
func sameSymbols(a, b *elf.File) bool {
	x, errX := a.Symbols()
	y, errY := b.Symbols()
	if errX != nil || errY != nil || len(x) != len(y) {
		return false
	}
	if slices.Equal(names(x), names(y)) {
		byPlace := func(a, b elf.Symbol) int {
			return cmp.Or(cmp.Compare(a.Section, b.Section), cmp.Compare(a.Value, b.Value), strings.Compare(a.Name, b.Name))
		}
		slices.SortFunc(x, byPlace)
		slices.SortFunc(y, byPlace)
		if slices.Equal(names(x), names(y)) {
			return false
		}
	}
	u, v := names(x), names(y)
	slices.Sort(u)
	slices.Sort(v)
	return slices.Equal(u, v)
}

func names(list []elf.Symbol) []string {
	all := make([]string, len(list))
	for i, s := range list {
		all[i] = s.Name
	}
	return all
}

// How much of a place is shown, in bytes.
const (
	shownBefore = 32
	shownAfter  = 64
	shownHex    = 16
)

// excerpt shows what is at a place: the text around it, or some bytes.
func excerpt(data []byte, at int) string {
	from, to := at, at
	for from > 0 && at-from < shownBefore && isText(data[from-1]) {
		from--
	}
	for to < len(data) && to-at < shownAfter && isText(data[to]) {
		to++
	}
	if to-from >= 4 {
		return strconv.Quote(string(data[from:to]))
	}
	if at >= len(data) {
		return ""
	}
	return hex.EncodeToString(data[at:min(len(data), at+shownHex)])
}

func isText(c byte) bool { return c >= 0x20 && c < 0x7f || c == '\t' || c == '\n' }

func printable(data []byte) bool {
	return !bytes.ContainsFunc(data, func(r rune) bool { return r != 0 && (r > 0x7f || !isText(byte(r))) })
}

// Forms of times: those of __DATE__, __TIME__ and date(1), ISO 8601, and seconds
// since 1970 from 2001 on.
var timeForms = []struct {
	form *regexp.Regexp
	what string
}{
	{regexp.MustCompile(`\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ 0-3]?\d (19|20)\d\d\b`), "a date, as __DATE__ has it"},
	{regexp.MustCompile(`\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +\d{1,2} +[0-2]\d:[0-5]\d`), "a date, as date(1) has it"},
	{regexp.MustCompile(`\b(19|20)\d\d-?[01]\d-?[0-3]\d`), "a date"},
	{regexp.MustCompile(`\b[0-2]\d:[0-5]\d(:[0-6]\d)?\b`), "a time, as __TIME__ and date(1) have it"},
	{regexp.MustCompile(`\b[12]\d{9}\b`), "a number of seconds since 1970"},
}

var pathForm = regexp.MustCompile(`(/[\w.+-]+){2,}`)

// readCauses guesses causes from what differs.
func readCauses(all []Difference) []Cause {
	var causes []Cause
	add := func(kind, detail string) {
		if !slices.ContainsFunc(causes, func(c Cause) bool { return c.Kind == kind }) {
			causes = append(causes, Cause{Kind: kind, Detail: detail})
		}
	}
	only := ""
	for _, d := range all {
		where := d.place()
		switch {
		case d.Section == ".BTF" || d.Section == ".BTF.ext":
			add(CauseBTF, where+": pahole writes types in an order that depends on its threads, unless KBUILD_BUILD_TIMESTAMP is set")
		case strings.Contains(d.Note, "in another order"):
			add(string(Order), where+": "+d.Note)
		}
		for _, t := range timeForms {
			if x, y := t.form.FindString(d.Was), t.form.FindString(d.Now); x != "" && y != "" && x != y {
				add(string(Clock), fmt.Sprintf("%s: %s: %q became %q", where, t.what, x, y))
			}
		}
		if x, y := pathForm.FindString(d.Was), pathForm.FindString(d.Now); x != "" && y != "" && x != y {
			add(CausePath, fmt.Sprintf("%s: %s became %s", where, x, y))
		}
		if bytes.Contains(d.now, []byte(otherHost)) {
			add(string(Host), where+" holds the host name")
		}
		if bytes.Contains(d.now, []byte(otherUser)) {
			add(string(User), where+" holds the user's name")
		}
		if d.Section != ".note.gnu.build-id" {
			only = "no"
		} else if only == "" {
			only = "build-id"
		}
	}
	if only == "build-id" {
		add(CauseBuildID, "nothing but the build-id: what was stripped afterwards, as paths in debugging information, differs")
	}
	return causes
}

// place names where a difference is.
func (d Difference) place() string {
	var at []string
	if d.Member != "" {
		at = append(at, d.Member)
	}
	if d.Section != "" {
		at = append(at, "section "+d.Section)
	}
	if len(at) == 0 {
		return "the file"
	}
	return strings.Join(at, ", ")
}

func (d Difference) String() string {
	s := d.place()
	switch {
	case d.Sizes[0] < 0:
		return s + ": was not there"
	case d.Sizes[1] < 0:
		return s + ": is not there any more"
	}
	s += fmt.Sprintf(": from byte %d: %s became %s", d.Offset, orEnd(d.Was), orEnd(d.Now))
	if d.Sizes[0] != d.Sizes[1] {
		s += fmt.Sprintf(" (%d bytes became %d)", d.Sizes[0], d.Sizes[1])
	}
	if d.Note != "" {
		s += "; " + d.Note
	}
	return s
}

func orEnd(s string) string {
	if s == "" {
		return "the end"
	}
	return s
}
