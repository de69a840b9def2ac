package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-cleanhttp"
	"github.com/hashicorp/go-retryablehttp"
)

// Defaults of the client that NewHTTP makes.
const (
	// DefaultStall is how long a server may send nothing before it is given up.
	DefaultStall = 30 * time.Second
	retryMax     = 3
	retryWaitMin = 500 * time.Millisecond
	retryWaitMax = 5 * time.Second
	userAgent    = "kofarm"
)

// errStalled is the cause of a request that was cancelled because no byte came for the stall time.
var errStalled = errors.New("stalled")

// NewHTTP returns a client that retries errors and 5xx answers a few times with backoff, never waits
// longer than 5 s between two tries whatever a Retry-After says, does not log, and gives up on a
// server that does not connect or answer within stall. Timeouts are not retried here: the next
// mirror comes first.
func NewHTTP(stall time.Duration) *retryablehttp.Client {
	transport := cleanhttp.DefaultPooledTransport()
	transport.DialContext = (&net.Dialer{Timeout: stall, KeepAlive: 30 * time.Second}).DialContext
	transport.TLSHandshakeTimeout = stall
	transport.ResponseHeaderTimeout = stall
	transport.DisableCompression = true // a checksum is over the bytes as stored
	return &retryablehttp.Client{
		HTTPClient:   &http.Client{Transport: transport},
		RetryMax:     retryMax,
		RetryWaitMin: retryWaitMin,
		RetryWaitMax: retryWaitMax,
		CheckRetry:   checkRetry,
		Backoff:      cappedBackoff,
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}
}

// checkRetry is the library's policy, except that a timeout is not retried.
func checkRetry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return false, err
	}
	return retryablehttp.DefaultRetryPolicy(ctx, resp, err)
}

// cappedBackoff is the library's backoff, which obeys Retry-After, held to its own maximum.
func cappedBackoff(lo, hi time.Duration, attempt int, resp *http.Response) time.Duration {
	return min(retryablehttp.DefaultBackoff(lo, hi, attempt, resp), hi)
}

// transfer is one answer being read; Close releases the connection and the timer.
type transfer struct {
	*http.Response
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
	client *Client
	bytes  atomic.Int64 // that have come
}

// get sends one GET. The caller closes the transfer.
func (c *Client) get(ctx context.Context, url string, header http.Header) (*transfer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := retryablehttp.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	req.Header = header
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := c.http().Do(req)
	if err != nil {
		cancel(nil)
		if resp != nil {
			_ = resp.Body.Close() // the request's own error says more
		}
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	t := &transfer{Response: resp, ctx: ctx, cancel: cancel, stall: c.stall(), client: c}
	t.timer = time.AfterFunc(t.stall, func() { cancel(errStalled) })
	c.mu.Lock()
	c.running = append(c.running, t)
	c.mu.Unlock()
	return t, nil
}

// Read reads from the body; a server that sends nothing for the stall time is an error.
func (t *transfer) Read(p []byte) (int, error) {
	n, err := t.Body.Read(p)
	t.timer.Reset(t.stall)
	t.bytes.Add(int64(n))
	if err == nil || err == io.EOF {
		return n, err
	}
	if errors.Is(context.Cause(t.ctx), errStalled) {
		return n, fmt.Errorf("%w: no data for %s", ErrUnavailable, t.stall)
	}
	return n, fmt.Errorf("%w: reading: %w", ErrUnavailable, err)
}

// Close ends the transfer.
func (t *transfer) Close() error {
	t.client.mu.Lock()
	t.client.running = slices.DeleteFunc(t.client.running, func(other *transfer) bool { return other == t })
	t.client.mu.Unlock()
	t.timer.Stop()
	t.cancel(nil)
	return t.Body.Close()
}

// Download is one answer that is being read.
type Download struct {
	Name  string // the file's, or what of an archive an index is of
	Bytes int64  // that have come
	Size  int64  // bytes of the answer; -1 where unknown
}

// Downloads tells what is being downloaded at the moment, the oldest first.
func (c *Client) Downloads() []Download {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []Download
	for _, t := range c.running {
		list = append(list, Download{Name: label(t.Request.URL.Path), Bytes: t.bytes.Load(), Size: t.ContentLength})
	}
	return list
}

// label is what people call a file: the last element of its path, and what
// belongs to a suite by its place there, without the digest that is its name.
func label(p string) string {
	if _, below, ok := strings.Cut(p, "/dists/"); ok {
		below, _, _ = strings.Cut(below, "/by-hash/")
		return below
	}
	return path.Base(p)
}

// statusError turns an answer that carries no content into an error.
func statusError(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		return fmt.Errorf("%w (%s)", ErrNotFound, resp.Status)
	}
	return fmt.Errorf("%w: it answered %s", ErrUnavailable, resp.Status)
}
