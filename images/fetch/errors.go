package fetch

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Sentinels that a caller branches on with errors.Is.
var (
	// ErrOffline: the client is offline and the file is not in the cache.
	ErrOffline = errors.New("not in the cache, and offline")
	// ErrNotFound: every mirror answered that it has no such file.
	ErrNotFound = errors.New("not found")
	// ErrChecksum: a mirror sent other bytes than those asked for (wrong sha256 or size).
	ErrChecksum = errors.New("wrong content")
	// ErrTooLarge: a mirror sent more than the limit.
	ErrTooLarge = errors.New("too large")
	// ErrUnavailable: a mirror could not be reached, stalled, or answered with an error; trying
	// again later may help.
	ErrUnavailable = errors.New("mirror unavailable")
)

// localError marks a failure of this machine (disk full, permissions): another mirror cannot help.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// MirrorsError says that every mirror failed, with one error for each, in the order tried.
//
// errors.Is(err, ErrNotFound) holds only if every mirror said so: a mirror that could not be
// reached may well have the file. Any other target matches if it matches one mirror's error.
type MirrorsError struct {
	Name string // what was asked for
	Errs []error
}

func (e *MirrorsError) Error() string {
	if len(e.Errs) == 1 {
		return fmt.Sprintf("fetching %s: %v", e.Name, e.Errs[0])
	}
	var b strings.Builder
	fmt.Fprintf(&b, "fetching %s: all %d mirrors failed:", e.Name, len(e.Errs))
	for _, err := range e.Errs {
		fmt.Fprintf(&b, "\n  %v", err)
	}
	return b.String()
}

// Is reports whether target matches, as the type's comment says.
func (e *MirrorsError) Is(target error) bool {
	match := func(err error) bool { return errors.Is(err, target) }
	if target == ErrNotFound {
		return len(e.Errs) > 0 && !slices.ContainsFunc(e.Errs, func(err error) bool { return !match(err) })
	}
	return slices.ContainsFunc(e.Errs, match)
}

// As finds the first mirror's error that fits target.
func (e *MirrorsError) As(target any) bool {
	return slices.ContainsFunc(e.Errs, func(err error) bool { return errors.As(err, target) })
}
