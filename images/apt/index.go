package apt

import (
	"errors"
	"fmt"
)

// Index is an opened suite: its components' packages for one architecture. It is safe for
// concurrent use until it is closed.
type Index struct {
	Source  Source
	Release *Release

	tables []*table
}

// Close closes the index files.
func (ix *Index) Close() error {
	var errs []error
	for _, t := range ix.tables {
		errs = append(errs, t.file.Close())
	}
	return errors.Join(errs...)
}

// Len is the number of packages, all versions counted.
func (ix *Index) Len() int {
	n := 0
	for _, t := range ix.tables {
		n += len(t.entries)
	}
	return n
}

// pkg reads one package and completes it by what the index knows.
func (ix *Index) pkg(t *table, i int) (*Package, error) {
	p, err := t.stanza(i)
	if err != nil {
		return nil, fmt.Errorf("suite %s (%s): %w", ix.Source.Suite, ix.Source.Distribution, err)
	}
	p.URLs = joinURLs(ix.Source.Mirrors, p.Filename)
	p.Distribution, p.Suite, p.rank = ix.Source.Distribution, ix.Source.Suite, ix.Release.rank()
	return p, nil
}

// usableHere reports whether a package is for the index's architecture.
func (ix *Index) usableHere(p *Package) bool { return p.Arch == "all" || p.Arch == ix.Source.Arch }

// named returns the packages of that name, in the order of the files.
func (ix *Index) named(name string) ([]*Package, error) {
	var all []*Package
	for _, t := range ix.tables {
		from, to := t.find(name)
		for i := from; i < to; i++ {
			p, err := ix.pkg(t, i)
			if err != nil {
				return nil, err
			}
			if ix.usableHere(p) {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// providerNames calls f with the names of the packages that may provide name.
func (ix *Index) providerNames(name string, f func(string)) {
	for _, t := range ix.tables {
		for _, i := range t.providers(name) {
			f(t.entries[i].name)
		}
	}
}
