package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

const (
	mutableNameMax = 200     // bytes of an escaped name; file systems take 255
	mutableHeadMax = 8 << 10 // bytes of the first line of a kept copy
)

// kept is the copy of a mutable file on disk: one line of JSON, then the content, in one file so
// that the two always belong together.
type kept struct {
	URL          string `json:"url"`
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`

	body []byte
}

// Mutable returns the current content of a file that changes in place, at most limit bytes. It asks
// the mirrors in order, and those again that may have recovered; conditionally where the copy kept
// from last time came from the same URL.
// check (nil: anything goes) sees the content before it is kept or returned; what it refuses counts
// as that mirror's failure. Offline, the copy is checked and returned.
//
// The errors are those of Fetch. If all mirrors fail, the copy is not used behind the caller's back.
func (c *Client) Mutable(ctx context.Context, urls []string, name string, limit int64, check func([]byte) error) ([]byte, error) {
	if check == nil {
		check = func([]byte) error { return nil }
	}
	path, err := c.mutablePath(name)
	if err != nil {
		return nil, err
	}
	old, err := readKept(path, limit)
	if err != nil {
		return nil, fmt.Errorf("reading the copy of %s: %w", name, err)
	}
	if c.Offline {
		return offlineCopy(old, name, check)
	}
	var body []byte
	err = c.tryMirrors(ctx, name, urls, func(u string) (err error) {
		body, err = c.mutableFrom(ctx, u, path, old, limit, check)
		return err
	})
	if local, ok := errors.AsType[*localError](err); ok {
		return nil, fmt.Errorf("fetching %s: %w", name, local.err)
	}
	if err != nil {
		return nil, err
	}
	return body, nil
}

func offlineCopy(old *kept, name string, check func([]byte) error) ([]byte, error) {
	if old == nil {
		return nil, fmt.Errorf("fetching %s: %w", name, ErrOffline)
	}
	if err := check(old.body); err != nil {
		return nil, fmt.Errorf("%s (the copy kept from %s): %w", name, old.URL, err)
	}
	return old.body, nil
}

// mutableFrom asks one mirror and keeps what it sends.
func (c *Client) mutableFrom(ctx context.Context, u, path string, old *kept, limit int64, check func([]byte) error) ([]byte, error) {
	t, err := c.get(ctx, u, conditions(u, old))
	if err != nil {
		return nil, err
	}
	defer t.Close() // only ever read from
	if t.StatusCode == http.StatusNotModified && old != nil {
		return old.body, check(old.body)
	}
	if t.StatusCode != http.StatusOK {
		return nil, statusError(t.Response)
	}
	var body bytes.Buffer
	if _, err := copyLimited(&body, t, limit); err != nil {
		return nil, err
	}
	if err := check(body.Bytes()); err != nil {
		return nil, err
	}
	fresh := &kept{URL: u, ETag: t.Header.Get("ETag"), LastModified: t.Header.Get("Last-Modified"), body: body.Bytes()}
	if err := c.writeKept(ctx, path, fresh); err != nil {
		return nil, &localError{err}
	}
	return fresh.body, nil
}

// conditions are the headers that make a request conditional on the kept copy.
func conditions(u string, old *kept) http.Header {
	header := http.Header{}
	if old == nil || old.URL != u {
		return header
	}
	if old.ETag != "" {
		header.Set("If-None-Match", old.ETag)
	}
	if old.LastModified != "" {
		header.Set("If-Modified-Since", old.LastModified)
	}
	return header
}

func (c *Client) mutablePath(name string) (string, error) {
	escaped := url.PathEscape(name)
	if escaped == "" || strings.HasPrefix(escaped, ".") || len(escaped) > mutableNameMax {
		return "", fmt.Errorf("name %q of a mutable file is empty, begins with a dot or is longer than %d bytes", name, mutableNameMax)
	}
	return filepath.Join(c.Kept, escaped), nil
}

// readKept returns nil where there is no usable copy.
func readKept(path string, limit int64) (*kept, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	data, err := io.ReadAll(io.LimitReader(f, limit+mutableHeadMax))
	if err != nil {
		return nil, err
	}
	head, body, ok := bytes.Cut(data, []byte("\n"))
	k := &kept{body: body}
	if !ok || json.Unmarshal(head, k) != nil {
		return nil, nil // damaged: as if it were not there
	}
	return k, nil
}

// writeKept replaces the copy. The unfinished one has a fixed name and a lock, so that a killed
// process leaves nothing that the next one does not reuse.
func (c *Client) writeKept(ctx context.Context, path string, k *kept) error {
	head, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if len(head) >= mutableHeadMax { // a hostile ETag: keep the content without it
		if head, err = json.Marshal(&kept{URL: k.URL}); err != nil {
			return err
		}
	}
	for _, dir := range []string{filepath.Dir(path), c.Partial} {
		if err := os.MkdirAll(dir, dirMode); err != nil {
			return err
		}
	}
	tmp, err := OpenLocked(ctx, filepath.Join(c.Partial, filepath.Base(path)))
	if err != nil {
		return err
	}
	defer tmp.Close() // releases the lock; synced before the rename
	if err := emptied(tmp); err != nil {
		return err
	}
	if _, err := tmp.Write(append(append(head, '\n'), k.body...)); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
