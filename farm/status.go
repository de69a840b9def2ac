package farm

import (
	"io"

	"github.com/kofarm/kofarm/images/store"
)

// Status says what the store knows of a cell.
type Status string

// The statuses of a cell beside its outcomes.
const (
	NotYet      Status = "not yet"
	CheckFailed Status = "check failed" // built, but its modules do not fit the kernel
)

// StatusOf looks a cell up. The record is nil where there is none.
func StatusOf(s *store.Store, c *Cell) (Status, *Record) {
	if c.Excluded {
		return Status(Excluded), nil
	}
	rec, err := records{s}.judged(c.Key)
	switch {
	case err != nil:
		return NotYet, nil
	case rec.Outcome == Built && len(rec.Check.Problems) > 0:
		return CheckFailed, rec
	}
	return Status(rec.Outcome), rec
}

// OpenLog opens the log of a cell's last build, as plain text. The error is
// store.ErrNotFound where there was none. The caller closes the log.
func OpenLog(s *store.Store, c *Cell) (io.ReadCloser, error) {
	rec, err := records{s}.load(c.Key)
	if err != nil {
		return nil, err
	}
	return records{s}.log(rec.Log)
}

// Stored gives the results that the store holds of the cells, in their order.
// A cell that has not been built, or has to be again, has the outcome NotYet.
func Stored(s *store.Store, cells []*Cell) []*Result {
	results := make([]*Result, len(cells))
	for i, c := range cells {
		results[i] = &Result{Cell: c, Outcome: Outcome(NotYet)}
		if c.Excluded {
			results[i].Outcome = Excluded
			continue
		}
		if rec, err := (records{s}).judged(c.Key); err == nil {
			results[i] = &Result{Cell: c, Record: rec, Outcome: rec.Outcome, Cached: true}
		}
	}
	return results
}
