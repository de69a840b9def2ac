package images

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
)

// Packages are fetched and decompressed ahead of the layer that they go into:
// some at a time, and of each at most so many chunks are in memory.
const (
	maxAhead    = 4
	aheadChunks = 256
	chunkBytes  = 64 << 10
)

func aheadPackages() int { return max(2, min(maxAhead, runtime.NumCPU())) }

// ahead reads an archive in a goroutine of its own, as far as its chunks go
// before the one who reads from it.
type ahead struct {
	items  chan item
	cancel context.CancelFunc
	done   sync.WaitGroup
	chunk  *chunk // of the current entry
	offset int
	next   *item // that Read has met: the next entry, or the end
}

type chunk struct {
	data [chunkBytes]byte
	n    int
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// item is an entry's header, a part of its content, or the end of the archive.
type item struct {
	header *tar.Header
	chunk  *chunk
	err    error
}

var _ entries = (*ahead)(nil)

// readAhead begins to read what open opens. The caller closes it.
func readAhead(ctx context.Context, open func(context.Context) (entries, error)) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	a := &ahead{items: make(chan item, aheadChunks), cancel: cancel}
	a.done.Go(func() {
		defer close(a.items)
		err := a.fill(ctx, open)
		a.send(ctx, item{err: err})
	})
	return a
}

// send hands an item on, unless the reader has gone.
func (a *ahead) send(ctx context.Context, i item) error {
	select {
	case a.items <- i:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fill reads to the end, which is io.EOF.
func (a *ahead) fill(ctx context.Context, open func(context.Context) (entries, error)) (err error) {
	e, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := e.Close(); cerr != nil && errors.Is(err, io.EOF) {
			err = cerr
		}
	}()
	for {
		h, err := e.Next()
		if err != nil {
			return err
		}
		if err := a.send(ctx, item{header: h}); err != nil {
			return err
		}
		if err := a.content(ctx, e); err != nil {
			return err
		}
	}
}

// content sends the content of the current entry.
func (a *ahead) content(ctx context.Context, r io.Reader) error {
	for {
		c := chunks.Get().(*chunk)
		var err error
		c.n, err = io.ReadFull(r, c.data[:])
		if c.n > 0 {
			if err := a.send(ctx, item{chunk: c}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// receive gives the next item. After an error it gives that error for ever.
func (a *ahead) receive() item {
	if a.next != nil {
		i := *a.next
		if i.err == nil {
			a.next = nil
		}
		return i
	}
	i, ok := <-a.items
	if !ok {
		i.err = context.Canceled
	}
	if i.err != nil {
		a.next = &i
	}
	return i
}

// Next implements entries.
func (a *ahead) Next() (*tar.Header, error) {
	a.drop()
	for {
		i := a.receive()
		if i.err != nil || i.header != nil {
			return i.header, i.err
		}
		chunks.Put(i.chunk)
	}
}

// Read implements entries.
func (a *ahead) Read(p []byte) (int, error) {
	if a.chunk == nil {
		i := a.receive()
		switch {
		case i.header != nil:
			a.next = &i
			return 0, io.EOF
		case i.err != nil:
			return 0, i.err
		}
		a.chunk, a.offset = i.chunk, 0
	}
	n := copy(p, a.chunk.data[a.offset:a.chunk.n])
	if a.offset += n; a.offset == a.chunk.n {
		a.drop()
	}
	return n, nil
}

func (a *ahead) drop() {
	if a.chunk != nil {
		chunks.Put(a.chunk)
		a.chunk = nil
	}
}

// Close ends the reading, and waits for its end.
func (a *ahead) Close() error {
	a.cancel()
	a.done.Wait()
	return nil
}
