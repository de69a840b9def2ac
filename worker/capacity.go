package worker

import "errors"

// Capacity is what a place that runs tasks has for them.
type Capacity struct {
	ID     string // of the daemon, "" if it has none: two addresses may be one daemon's
	Cores  int
	Memory int64 // bytes; 0: unknown
}

// ErrLost marks that a task's end is not known because its daemon has gone, be
// it that it was killed or that the connection broke. It says nothing about
// the task, which may run again elsewhere at once.
var ErrLost = errors.New("the daemon was lost")
