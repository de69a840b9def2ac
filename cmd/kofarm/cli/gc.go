package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/farm/report"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/worker/embedded"
)

type gcFlags struct {
	maxSize, maxAge string
	dryRun          bool
}

func (a *app) gcCommand() *cobra.Command {
	var f gcFlags
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove from the store what was not used for long, or what makes it too large",
		Long: `gc removes results, packages, layers, unpacked layers, downloads and package
indexes that were not used for --max-age, and then those used least recently
until the rest fits --max-size. It may run beside builds: what was used since
the oldest of them began stays. So where a build has run for long, gc may have to
leave more than --max-size; it says so.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := f.policy(time.Now())
			if err != nil {
				return err
			}
			return a.gc(cmd.Context(), p)
		},
	}
	cmd.Flags().StringVar(&f.maxAge, "max-age", "30d", "remove what was last used longer ago: `age` such as 12h or 30d; 0: no limit")
	cmd.Flags().StringVar(&f.maxSize, "max-size", "0", "remove the least recently used until the rest fits: `size` such as 20GiB; 0: no limit")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "remove nothing, and say what would be removed")
	return cmd
}

func (f gcFlags) policy(now time.Time) (store.Policy, error) {
	p := store.Policy{DryRun: f.dryRun, Now: now}
	var err error
	if f.maxAge != "0" {
		if p.MaxAge, err = parseAge(f.maxAge); err != nil {
			return p, fmt.Errorf("--max-age %q: %w", f.maxAge, err)
		}
	}
	if f.maxSize != "0" {
		size, err := matrix.ParseSize(f.maxSize)
		if err != nil {
			return p, fmt.Errorf("--max-size %q: %w", f.maxSize, err)
		}
		p.MaxSize = int64(size)
	}
	return p, nil
}

// maxAge is the longest age in days that fits a time.Duration, and some less.
const maxAge = 36500

// parseAge parses a duration such as 12h, or a whole number of days such as 30d.
func parseAge(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n == 0 || n > maxAge {
			return 0, fmt.Errorf("want a number of days from 1d to %dd", maxAge)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	age, err := time.ParseDuration(s)
	if err != nil || age <= 0 {
		return 0, errors.New("want an age such as 12h or 30d")
	}
	return age, nil
}

func (a *app) gc(ctx context.Context, p store.Policy) (err error) {
	s, err := a.openStore()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, infrastructure(s.Close())) }()
	unpacked, err := embedded.ListUnpacked(filepath.Join(s.Dir(), "run"))
	if err != nil {
		return infrastructure(err)
	}
	for _, u := range unpacked {
		p.Others = append(p.Others, store.Item{Kind: "unpacked layer", Used: u.Used, Size: u.Size, Remove: u.Remove})
	}
	r, err := s.Collect(ctx, p)
	if err != nil {
		return infrastructure(err)
	}
	if a.json {
		return a.encode(struct {
			Version int  `json:"version"`
			DryRun  bool `json:"dryRun"`
			*store.Report
		}{1, p.DryRun, r})
	}
	a.printFreed(p, r)
	return nil
}

func (a *app) printFreed(p store.Policy, r *store.Report) {
	if a.quiet {
		return
	}
	freed := "freed"
	if p.DryRun {
		freed = "would free"
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Freed)) {
		t := r.Freed[kind]
		fmt.Fprintf(a.stdout, "%6d %-18s %s\n", t.Count, kind, report.Bytes(t.Bytes))
	}
	fmt.Fprintf(a.stdout, "%s %s, kept %s\n", freed, report.Bytes(r.Total.Bytes), report.Bytes(r.Kept))
	if p.MaxSize > 0 && r.Kept > p.MaxSize {
		fmt.Fprintf(a.stderr, "kofarm: the rest is still more than %s: it was used since the oldest of %d running kofarm processes began, or within the last seconds\n",
			report.Bytes(p.MaxSize), r.Users)
	}
}
