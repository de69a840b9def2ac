package farm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/matrix"
)

// connect gives cells those that they are built upon, and their keys.
func connect(cells []*Cell) {
	type axes struct {
		module *matrix.ModuleVersion
		kernel *matrix.Kernel
	}
	at := make(map[axes]*Cell, len(cells))
	for _, c := range cells {
		at[axes{c.Module, c.Kernel}] = c
	}
	var name func(*Cell)
	name = func(c *Cell) {
		if c.Excluded || c.Key != "" {
			return
		}
		for _, n := range c.Module.Needs { // matrix.Expand has excluded a cell that lacks one
			need := at[axes{n, c.Kernel}]
			name(need)
			c.Needs = append(c.Needs, need)
		}
		c.Key = c.key()
	}
	for _, c := range cells {
		name(c)
	}
}

// WithNeeds gives cells and those that they are built upon, in the order of all.
func WithNeeds(all, cells []*Cell) []*Cell {
	wanted := map[*Cell]bool{}
	for _, c := range cells {
		wanted[c] = true
		for _, n := range c.Needs {
			wanted[n] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(c *Cell) bool { return !wanted[c] })
}

// buildAll builds the cells that indices name, so many at a time, each after
// those that it needs; else in the order of the indices. When the context ends
// it begins no more.
func (b *Builder) buildAll(ctx context.Context, cells []*Cell, indices []int, results []*Result, parallel int, slots *slots) {
	at := make(map[*Cell]int, len(cells))
	for i, c := range cells {
		at[c] = i
	}
	unfinished := map[*Cell]bool{}
	for _, i := range indices {
		unfinished[cells[i]] = true
	}
	ready := func(i int) bool {
		return !slices.ContainsFunc(cells[i].Needs, func(n *Cell) bool { return unfinished[n] })
	}
	finished := make(chan int)
	for running := 0; ; {
		next := -1
		if running < parallel && ctx.Err() == nil {
			next = slices.IndexFunc(indices, ready)
		}
		switch {
		case next >= 0:
			i := indices[next]
			copy(indices[1:], indices[:next])
			indices = indices[1:]
			upon := b.needed(cells[i], func(n *Cell) *Result {
				if at, ok := at[n]; ok {
					return results[at]
				}
				return b.known(n)
			})
			running++
			go func() {
				results[i] = b.buildCell(ctx, cells[i], upon, slots)
				finished <- i
			}()
		case running > 0:
			i := <-finished
			running--
			delete(unfinished, cells[i])
			if results[i] != nil {
				b.Observer.Finished(results[i])
			}
		default:
			return
		}
	}
}

// needed gives the results of what a cell is built upon.
func (b *Builder) needed(c *Cell, result func(*Cell) *Result) []*Result {
	var all []*Result
	for _, n := range c.Needs {
		r := result(n)
		if r == nil {
			r = &Result{Cell: n, Outcome: Infrastructure, Err: errors.New("it is not built")}
		}
		all = append(all, r)
	}
	return all
}

// lacking gives the result of a cell that cannot be built for what it is built
// upon, or nil.
func (b *Builder) lacking(c *Cell, upon []*Result) *Result {
	for _, r := range upon {
		name := r.Cell.Module.Name + "/" + r.Cell.Module.Version
		var why string
		switch {
		case r.Fits():
			continue
		case r.Outcome == Infrastructure:
			return &Result{Cell: c, Outcome: Infrastructure, Err: fmt.Errorf("%s, which it is built upon: %w", name, r.Err)}
		case r.Outcome == Built:
			why = "does not fit the kernel"
		case r.Outcome == Failed:
			why = "has failed"
		default:
			why = "is " + string(r.Outcome)
		}
		rec := &Record{Outcome: Failed, Phase: "depends", DKMSExit: 13, Message: clip(fmt.Sprintf("%s, which it is built upon, %s: %s", name, why, r.Record.Reasons()[0]))}
		rec, err := b.saveUnbuilt(c, rec)
		if err != nil {
			return &Result{Cell: c, Outcome: Infrastructure, Err: err}
		}
		return &Result{Cell: c, Record: rec, Outcome: rec.Outcome}
	}
	return nil
}

// saveUnbuilt stores the record of a cell that was not run, as save does.
func (b *Builder) saveUnbuilt(c *Cell, rec *Record) (*Record, error) {
	log, err := newLog(b.Store)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(log, verdict+rec.Phase+": "+rec.Message+"\n"); err != nil {
		return nil, errors.Join(err, log.abort())
	}
	if rec.Log, err = log.commit(); err != nil {
		return nil, err
	}
	return b.save(c, rec)
}

// built gives results as an image has them.
func (b *Builder) built(upon []*Result) []images.Built {
	file := func(name string, blob Blob) images.BuiltFile {
		return images.BuiltFile{Name: name, SHA256: blob.SHA256, Size: blob.Size,
			Open: func() (io.ReadCloser, error) { return b.Store.Open(blob.hash()) }}
	}
	var all []images.Built
	for _, r := range upon {
		built := images.Built{Source: r.Cell.Inputs.Source, Kernel: r.Cell.Kernel.Release, Arch: r.Cell.Kernel.Arch}
		for _, m := range r.Record.Modules {
			built.Files = append(built.Files, file("module/"+m.Name, m.Blob))
		}
		if s := r.Record.Symvers; s != nil {
			built.Files = append(built.Files, file("module/Module.symvers", *s))
		}
		if t := r.Record.Tree; t != nil {
			tree := file("tree.tar", *t)
			built.Tree = &tree
		}
		all = append(all, built)
	}
	return all
}
