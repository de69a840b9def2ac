package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"
)

const (
	// rounds is how often the list of mirrors is gone through while one of them may recover.
	rounds = 2
	// rest is how long a host that has failed is asked after all others: not for ever, as
	// these may be fallbacks, and what has failed once may be the nearest.
	rest = 5 * time.Minute
)

// tryMirrors tries URLs of a file until one delivers; a second round asks those again that
// may have recovered. Its errors are a *MirrorsError, the context's, or a *localError.
func (c *Client) tryMirrors(ctx context.Context, name string, urls []string, try func(url string) error) error {
	if len(urls) == 0 {
		return fmt.Errorf("fetching %s: no mirror is known", name)
	}
	urls = c.ordered(urls)
	errs := make([]error, len(urls))
	for range rounds {
		for i, u := range urls {
			if errs[i] != nil && !errors.Is(errs[i], ErrUnavailable) {
				continue
			}
			err := try(u)
			if _, local := errors.AsType[*localError](err); local {
				return err
			}
			if err != nil && ctx.Err() != nil {
				return fmt.Errorf("fetching %s: %w", name, context.Cause(ctx))
			}
			c.heard(u, err, len(urls) > 1)
			if err == nil {
				return nil
			}
			c.log().Debug("mirror failed", "url", u, "err", err)
			errs[i] = fmt.Errorf("%s: %w", u, err)
		}
	}
	return &MirrorsError{Name: name, Errs: errs}
}

// ordered gives the URLs in the order to try them: a host that has failed comes
// after all others for a while, so that a dead mirror does not cost its timeout for
// each file.
func (c *Client) ordered(urls []string) []string {
	var well, failing []string
	for _, u := range urls {
		if at, failed := c.failing.Load(host(u)); failed && time.Since(at.(time.Time)) < rest {
			failing = append(failing, u)
		} else {
			well = append(well, u)
		}
	}
	return append(well, failing...)
}

// heard notes how a host has answered. That one fails is told once, where
// another can take its place.
func (c *Client) heard(u string, err error, others bool) {
	switch {
	case err == nil:
		c.failing.Delete(host(u))
	case !errors.Is(err, ErrUnavailable):
	default:
		if _, known := c.failing.Swap(host(u), time.Now()); !known && others {
			c.log().Warn("a mirror fails; for a while the others are asked before it", "mirror", host(u), "err", err)
		}
	}
}

func host(u string) string {
	parsed, err := url.Parse(u)
	if err != nil {
		return u
	}
	return parsed.Scheme + "://" + parsed.Host
}
