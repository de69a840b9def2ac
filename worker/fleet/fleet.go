// Package fleet runs tasks on several daemons as if they were one.
//
// Tasks are spread by what each daemon has: the next one goes where the share
// of the cores in use is least. Each daemon is asked now and then whether it
// still answers. One that does not gets no tasks, and those that it had end
// with [worker.ErrLost], for the caller to run them again, elsewhere. It is
// asked again, less and less often, and used again when it answers. While none
// answers tasks wait, but not for long.
//
//	Run ──▶ least busy ──▶ daemon ──▶ result
//	            ▲             │ does not answer: ErrLost
//	            └── answers ──┘
package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kofarm/kofarm/worker"
)

const (
	// openTime is how long a daemon may take to be opened, which includes the
	// removal of what killed runs have left there.
	openTime = 3 * time.Minute
	// patience is how long a task waits while no daemon answers: longer than a
	// daemon takes to start on a busy machine.
	patience = time.Minute
	// memoryForCore is the memory that a daemon must have for each task.
	memoryForCore = 512 << 20
)

// Daemon is a daemon that has answered.
type Daemon interface {
	worker.Runner
	// Ping fails where the daemon does not answer.
	Ping(ctx context.Context) error
	Capacity(ctx context.Context) (worker.Capacity, error)
	// Close releases it. Its context need not be alive.
	Close(ctx context.Context) error
}

// Member is a daemon that may answer.
type Member struct {
	Name string // in messages: docker unix:///run/docker.sock
	Open func(ctx context.Context) (Daemon, error)
}

// Config describes a fleet.
type Config struct {
	Members []Member
	// Parallel is how many tasks there will be at a time. 0: as many as the
	// daemons have cores.
	Parallel int
	// Say is told in lines of what becomes of daemons. It may be nil.
	Say func(line string)
}

// Fleet runs tasks on daemons. Open makes one.
type Fleet struct {
	members  []*member
	parallel int
	say      func(string)
	stop     context.CancelFunc
	watches  sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed, and made again, when a task may find a place
	empty   time.Time     // since when no daemon has answered, zero while one does
}

var _ worker.Runner = (*Fleet)(nil)

// member is a daemon and how it is doing. Fleet.mu guards what changes.
type member struct {
	Member
	nudge chan struct{} // asks its watch to hurry

	daemon   Daemon // nil until it has answered for the first time
	capacity worker.Capacity
	running  int
	err      error         // why it gets no tasks
	lost     chan struct{} // closed when it stops to answer
}

// Open opens the daemons and gives a fleet of those that answer; the others may
// join later. It fails where none does, and where two are the same. Close
// releases the Fleet.
func Open(ctx context.Context, cfg Config) (*Fleet, error) {
	f := &Fleet{parallel: cfg.Parallel, say: cfg.Say, changed: make(chan struct{})}
	if f.say == nil {
		f.say = func(string) {}
	}
	var wg sync.WaitGroup
	for _, m := range cfg.Members {
		m := &member{Member: m, nudge: make(chan struct{}, 1), lost: make(chan struct{})}
		f.members = append(f.members, m)
		wg.Go(func() { m.daemon, m.capacity, m.err = open(ctx, m.Member) })
	}
	wg.Wait()
	watched, stop := context.WithCancel(context.WithoutCancel(ctx))
	f.stop = stop
	if err := f.check(); err != nil {
		return nil, errors.Join(err, f.Close(ctx))
	}
	for _, m := range f.members {
		if m.err != nil {
			f.say(fmt.Sprintf("%s does not answer, and is not used until it does: %v", m.Name, m.err))
		}
		f.watches.Go(func() { f.watch(watched, m) })
	}
	return f, nil
}

// open opens a daemon and asks what it has.
func open(ctx context.Context, m Member) (Daemon, worker.Capacity, error) {
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	d, err := m.Open(ctx)
	if err != nil {
		return nil, worker.Capacity{}, err
	}
	c, err := d.Capacity(ctx)
	if err != nil {
		return nil, c, errors.Join(err, d.Close(ctx))
	}
	return d, c, nil
}

// check looks at daemons that were just opened.
func (f *Fleet) check() error {
	answering := 0
	for i, m := range f.members {
		if m.err != nil {
			continue
		}
		answering++
		if twin := sameAs(m.capacity, f.members[:i]); twin != nil {
			return fmt.Errorf("%s and %s are the same daemon: give one of the addresses", twin.Name, m.Name)
		}
	}
	if answering == 0 {
		return f.nobody()
	}
	return nil
}

// sameAs finds the member that has the id already.
func sameAs(c worker.Capacity, members []*member) *member {
	for _, m := range members {
		if c.ID != "" && m.daemon != nil && m.capacity.ID == c.ID {
			return m
		}
	}
	return nil
}

// nobody is the error where no daemon answers: each one's own.
func (f *Fleet) nobody() error {
	if len(f.members) == 1 {
		return f.members[0].err
	}
	var errs []error
	for _, m := range f.members {
		errs = append(errs, fmt.Errorf("%s: %w", m.Name, m.err))
	}
	return fmt.Errorf("none of %d daemons answers:\n%w", len(errs), errors.Join(errs...))
}

// Cores gives the number of cores of each daemon. One that has never answered
// counts as one of the smallest of the others.
func (f *Fleet) Cores() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	smallest := 0
	for _, m := range f.members {
		if s := m.slots(); m.daemon != nil && (smallest == 0 || s < smallest) {
			smallest = s
		}
	}
	var cores []int
	for _, m := range f.members {
		if m.daemon == nil {
			cores = append(cores, smallest)
		} else {
			cores = append(cores, m.slots())
		}
	}
	return cores
}

// slots is how many tasks a member takes at a time: one for each core, as long
// as there is memory for them.
func (m *member) slots() int {
	n := m.capacity.Cores
	if mem := m.capacity.Memory; mem > 0 {
		n = min(n, int(mem/memoryForCore))
	}
	return max(n, 1)
}

// limit is how many tasks a member takes where the caller has asked for
// parallel on all, which have total slots.
func limit(slots, total, parallel int) int {
	return max(slots, (parallel*slots+total-1)/max(total, 1))
}

// Close releases the daemons. No task may be running. What a daemon that does
// not answer has left is not an error: a later run removes it.
func (f *Fleet) Close(ctx context.Context) error {
	f.stop()
	f.watches.Wait()
	var errs []error
	for _, m := range f.members {
		if m.daemon == nil {
			continue
		}
		err := m.daemon.Close(ctx)
		switch {
		case err != nil && (m.err != nil || errors.Is(err, worker.ErrLost)):
			f.say(fmt.Sprintf("%s does not answer: what is left there is removed by the next run that uses it", m.Name))
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", m.Name, err))
		}
	}
	return errors.Join(errs...)
}
