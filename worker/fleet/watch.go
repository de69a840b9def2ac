package fleet

import (
	"context"
	"fmt"
	"time"
)

const (
	// pulse is how often a daemon is asked whether it answers, and pingTime how
	// long it may take for that on a busy machine.
	pulse, pingTime = 5 * time.Second, 10 * time.Second
	// missed pulses in a row mean that a daemon is lost.
	missed = 3
	// One that is lost is asked at intervals from leastWait to mostWait.
	leastWait, mostWait = 100 * time.Millisecond, 15 * time.Second
)

// watch asks a member for signs of life until ctx ends.
func (f *Fleet) watch(ctx context.Context, m *member) {
	failures, wait := 0, pulse
	if !f.answering(m) {
		wait = leastWait
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.nudge: // it was lost just now
			failures, wait = missed, leastWait
			continue
		case <-time.After(wait):
		}
		err := f.probe(ctx, m)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failures, wait = 0, pulse
			f.find(m)
		case failures < missed-1 && f.answering(m):
			failures, wait = failures+1, time.Second
		default:
			f.lose(m, err)
			wait = min(2*max(wait, leastWait), mostWait)
		}
	}
}

func (f *Fleet) answering(m *member) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return m.err == nil
}

// probe asks a daemon, and opens one that has never answered.
func (f *Fleet) probe(ctx context.Context, m *member) error {
	if m.daemon != nil { // only its watch, which this is, writes it
		ctx, cancel := context.WithTimeout(ctx, pingTime)
		defer cancel()
		return m.daemon.Ping(ctx)
	}
	d, c, err := open(ctx, m.Member)
	if err != nil {
		return err
	}
	f.mu.Lock()
	twin := sameAs(c, f.members)
	if twin == nil {
		m.daemon, m.capacity = d, c
	}
	f.mu.Unlock()
	if twin != nil {
		_ = d.Close(ctx)
		return fmt.Errorf("it is the same daemon as %s", twin.Name)
	}
	return nil
}

// find marks a member as one that answers.
func (f *Fleet) find(m *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.err == nil {
		return
	}
	m.err, m.lost, f.empty = nil, make(chan struct{}), time.Time{}
	f.change()
	f.say(m.Name + " answers, and is used")
}

// lose marks a member as one that does not answer, for a reason.
func (f *Fleet) lose(m *member, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.err != nil {
		m.err = err
		return
	}
	m.err = err
	close(m.lost)
	select {
	case m.nudge <- struct{}{}:
	default:
	}
	others := 0
	for _, o := range f.members {
		if o.err == nil {
			others++
		}
	}
	if others == 0 {
		f.empty = time.Now()
	}
	f.change()
	f.say(fmt.Sprintf("%s is lost with %d builds, which run again%s: %v", m.Name, m.running, where(others), err))
}

func where(others int) string {
	if others == 0 {
		return " when a daemon answers"
	}
	return " elsewhere"
}
