package apt

import (
	"fmt"
	"strings"
)

// Limits on one relationship field.
const (
	maxDependencies = 20_000 // of one field; some crates provide a few thousand names
	maxAlternatives = 1000
	maxName         = 256
)

// Relation names packages: those called Name whose version is in relation Op to Version.
type Relation struct {
	Name    string
	Qual    string // architecture qualifier: "", "any", "native" or an architecture
	Op      string // "", "<<", "<=", "=", ">=" or ">>"
	Version string // empty with Op
}

// String returns the relation as in a control file.
func (r Relation) String() string {
	s := r.Name
	if r.Qual != "" {
		s += ":" + r.Qual
	}
	if r.Op != "" {
		s += " (" + r.Op + " " + r.Version + ")"
	}
	return s
}

// accepts reports whether version is in the relation.
func (r Relation) accepts(version string) bool {
	if r.Op == "" {
		return true
	}
	c := CompareVersions(version, r.Version)
	switch r.Op {
	case "<<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case ">=":
		return c >= 0
	}
	return c > 0
}

// Dependency is met by any one of its alternatives; the first is preferred.
type Dependency []Relation

// String returns the dependency as in a control file.
func (d Dependency) String() string {
	parts := make([]string, len(d))
	for i, r := range d {
		parts[i] = r.String()
	}
	return strings.Join(parts, " | ")
}

// ParseDependencies reads a relationship field of a binary package, such as Depends. Restrictions
// to architectures ("[amd64]") or build profiles ("<!nocheck>") occur in sources only and are errors.
func ParseDependencies(field string) ([]Dependency, error) {
	var all []Dependency
	for part := range strings.SplitSeq(field, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue // a trailing comma
		}
		if len(all) == maxDependencies {
			return nil, fmt.Errorf("%w of %d relationships in a field", ErrLimit, maxDependencies)
		}
		d, err := ParseDependency(part)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// ParseDependency reads one dependency, such as "gcc-12", "make (>= 4)" or "a | b".
func ParseDependency(s string) (Dependency, error) {
	var d Dependency
	for part := range strings.SplitSeq(s, "|") {
		if len(d) == maxAlternatives {
			return nil, fmt.Errorf("%w of %d alternatives", ErrLimit, maxAlternatives)
		}
		r, err := parseRelation(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("dependency %.80q: %w", s, err)
		}
		d = append(d, r)
	}
	return d, nil
}

func parseRelation(s string) (Relation, error) {
	head, rest, versioned := strings.Cut(s, "(")
	name, qual, qualified := strings.Cut(strings.TrimSpace(head), ":")
	r := Relation{Name: name, Qual: qual}
	if err := checkName(name); err != nil {
		return r, err
	}
	if qualified && checkName(qual) != nil {
		return r, fmt.Errorf("architecture %q is not valid", qual)
	}
	if !versioned {
		return r, nil
	}
	inner, after, closed := strings.Cut(rest, ")")
	if !closed || strings.TrimSpace(after) != "" {
		return r, fmt.Errorf("%q is not \"(operator version)\"", "("+rest)
	}
	r.Op, r.Version = cutOperator(strings.TrimSpace(inner))
	if r.Op == "" {
		return r, fmt.Errorf("%q has no operator (<<, <=, =, >=, >>)", inner)
	}
	return r, CheckVersion(r.Version)
}

// cutOperator splits ">= 1". The lone "<" and ">" of old packages mean "or equal" (Policy 7.1).
func cutOperator(s string) (op, version string) {
	for _, o := range []struct{ text, op string }{{"<<", "<<"}, {"<=", "<="}, {">=", ">="}, {">>", ">>"}, {"=", "="}, {"<", "<="}, {">", ">="}} {
		if rest, ok := strings.CutPrefix(s, o.text); ok {
			return o.op, strings.TrimSpace(rest)
		}
	}
	return "", s
}

// checkName takes what a package may be called (Policy 5.6.7), capitals included as dpkg does.
func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("package name %.40q is empty or longer than %d bytes", name, maxName)
	}
	for i := range len(name) {
		if c := name[i]; !isDigit(c) && !isLetter(c) && (i == 0 || !strings.ContainsRune("+-._", rune(c))) {
			return fmt.Errorf("package name %q is not valid", name)
		}
	}
	return nil
}
