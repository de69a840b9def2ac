package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/report"
	"github.com/kofarm/kofarm/matrix"
)

type buildFlags struct {
	output   string
	bundle   string
	cells    []string
	parallel int
	daemons  daemonFlags
}

func (a *app) buildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build [farm.yaml]",
		Short: "Build every cell that is not in the store, and write packages and results.json",
		Long: `build builds every cell that the store does not hold as built or excluded, and writes
packages and results.json.

With --cell it builds only the cells that are chosen, and those that they are built
upon. Packages and results.json are still those of the whole farm: of the other cells
they have what the store holds, as kofarm package does. What is printed, and the exit
status, are about the cells that are built.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.bundle != "" && len(args) > 0 {
				return fmt.Errorf("%s: with --bundle the farm file is the bundle's", args[0])
			}
			return a.build(cmd.Context(), farmArg(args), f)
		},
	}
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "`folder` for packages, logs and results.json (default: the farm file's output.directory)")
	cmd.Flags().StringVar(&f.bundle, "bundle", "", "`file` that kofarm bundle has written: build from it alone, without network")
	cmd.Flags().IntVarP(&f.parallel, "parallel", "j", 0, "`builds` at a time (default: the farm file's build.parallel, else one for each core)")
	cellFlag(cmd, &f.cells, "build")
	a.lockedFlag(cmd)
	f.daemons.add(cmd, "what runs the containers: "+strings.Join(matrix.Runtimes(), ", ")+" (default: the farm file's build.runtime, else embedded)")
	return cmd
}

func (a *app) packageCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "package [farm.yaml]",
		Short: "Write packages and results.json from the results in the store; builds nothing",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open(cmd.Context(), farmArg(args))
			if err != nil {
				return err
			}
			c, err := s.collector(cmd.Context(), output)
			if err != nil {
				return err
			}
			results := farm.Stored(s.store, s.plan.Cells)
			if err := a.knownTests(cmd.Context(), s, results); err != nil {
				return err
			}
			return a.collect(cmd.Context(), s, c, results)
		},
	}
	a.lockedFlag(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "`folder` for packages, logs and results.json (default: the farm file's output.directory)")
	return cmd
}

func (a *app) build(ctx context.Context, file string, f buildFlags) (err error) {
	if _, err := f.daemons.runtime(&matrix.Farm{}); err != nil {
		return err
	}
	if f.parallel < 0 {
		return fmt.Errorf("--parallel %d: a number of builds, or 0 for one for each core", f.parallel)
	}
	s, err := a.openAny(ctx, file, f.bundle)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, infrastructure(s.close())) }()
	cells, err := chosen(s.plan.Cells, f.cells)
	if err != nil {
		return err
	}
	cells = farm.WithNeeds(s.plan.Cells, cells)
	c, err := s.collector(ctx, f.output)
	if err != nil {
		return err
	}
	tests, err := a.farmTests(ctx, s)
	if err != nil {
		return err
	}
	rt, err := f.daemons.runtime(s.farm)
	if err != nil {
		return err
	}
	progress := report.NewProgress(a.screen(), len(cells), s.downloads)
	defer progress.Close()
	rt.store, rt.parallel = s.store.Dir(), cmp.Or(f.parallel, s.farm.Build.Parallel)
	rt.say = func(line string) { progress.Note("kofarm: " + line) }
	runner, err := a.openRunner(ctx, rt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, infrastructure(runner.close(ctx))) }()
	cache, err := a.cache(s)
	if err != nil {
		return err
	}
	b := &farm.Builder{
		Store: s.store, Cache: cache, Images: s.images, Runner: runner,
		Observer: progress, Log: a.log, Limits: limits(s.farm), Cores: runner.cores, Parallel: rt.parallel, Retries: s.farm.Build.Retries,
	}
	c.Sharer, _ = cache.(farm.Sharer) // one that may be written to
	results, err := b.Build(ctx, cells)
	progress.Close()
	if err != nil {
		return err
	}
	if tests != nil {
		done := a.wait(s, "booting kernels")
		err := tests.Run(ctx, results, a.sayVerdict())
		done()
		if err != nil {
			return classify(err)
		}
	}
	return a.collect(ctx, s, c, results)
}

// openAny opens a bundle if one is given, else a farm file.
func (a *app) openAny(ctx context.Context, file, bundle string) (*session, error) {
	if bundle != "" {
		return a.openBundle(ctx, bundle)
	}
	return a.open(ctx, file)
}

// collect writes the output: of results, and of what the store holds of the plan's
// other cells. The exit status that it makes is about results.
func (a *app) collect(ctx context.Context, s *session, c *farm.Collector, results []*farm.Result) error {
	all, err := a.complete(ctx, s, results)
	if err != nil {
		return err
	}
	collected, err := c.Collect(ctx, all)
	if err != nil {
		return folderError(err)
	}
	if collected.Unshared != nil {
		a.log.Warn("the shared cache has not got all that is said about results", "err", collected.Unshared)
	}
	if err := s.store.WriteIndex(); err != nil {
		return infrastructure(err)
	}
	return a.finish(c.Dir, collected, reportOf(results, all, collected.Report))
}

// reportOf is what the report on all results says of some.
func reportOf(some, all []*farm.Result, r *farm.Report) *farm.Report {
	ours := map[*farm.Result]bool{}
	for _, res := range some {
		ours[res] = true
	}
	out := *r
	out.Cells, out.Counts = nil, farm.Counts{}
	for i, res := range all {
		if ours[res] {
			out.Cells = append(out.Cells, r.Cells[i])
			out.Counts.Add(res)
		}
	}
	return &out
}

// complete gives results of all cells of the plan, in its order: those that are
// given, and of the others what the store holds.
func (a *app) complete(ctx context.Context, s *session, results []*farm.Result) ([]*farm.Result, error) {
	of := map[*farm.Cell]*farm.Result{}
	for _, r := range results {
		of[r.Cell] = r
	}
	others := farm.Stored(s.store, slices.DeleteFunc(slices.Clone(s.plan.Cells), func(c *farm.Cell) bool { return of[c] != nil }))
	if len(others) > 0 {
		if err := a.knownTests(ctx, s, others); err != nil {
			return nil, err
		}
	}
	for _, r := range others {
		of[r.Cell] = r
	}
	all := make([]*farm.Result, len(s.plan.Cells))
	for i, c := range s.plan.Cells {
		all[i] = of[c]
	}
	return all, nil
}

// finish prints what became of our cells, and turns it into the exit status.
// Quiet, it prints only what is not as it should be, on the standard error.
func (a *app) finish(dir string, c *farm.Collected, ours *farm.Report) error {
	code := exitStatus(ours)
	if a.json {
		if err := a.encode(c.Report); err != nil {
			return err
		}
	} else {
		a.warnPackages(c.Report.Warnings)
		if c.Kept > 0 && !a.quiet {
			fmt.Fprintf(a.stderr, "kofarm: %d packages of an earlier run stay in %s, as there is no result of their cells\n", c.Kept, dir)
		}
		if err := a.summary(a.resultWriter(code == exitOK), dir, c.Report, ours); err != nil {
			return err
		}
	}
	if err := errors.Join(c.Refused...); err != nil {
		code := exitFailed
		if _, ok := errors.AsType[*farm.LicenseError](err); ok {
			code = exitUsage // the farm file's to mend
		}
		return &exitError{code, err}
	}
	if code == exitOK {
		return nil
	}
	return &exitError{code: code}
}

// summary tells which of our cells are not as they should be, and counts.
func (a *app) summary(w io.Writer, dir string, all, r *farm.Report) error {
	if err := report.Failures(w, r.Cells, dir, a.rerun); err != nil {
		return err
	}
	counts, notYet := r.Counts, ""
	if counts.NotYet > 0 {
		notYet = fmt.Sprintf(", %d not yet built", counts.NotYet)
	}
	fmt.Fprintf(w, "%d built (%d of %d cells were in the store), %d excluded, %d failed%s; %d files in %s\n",
		counts.Built, counts.Cached, len(r.Cells), counts.Excluded, counts.Failed+counts.Infrastructure, notYet, len(r.Files), dir)
	if others := len(all.Cells) - len(r.Cells); others > 0 {
		n := all.Counts
		fmt.Fprintf(w, "the other %d cells are as the store has them: %d built, %d excluded, %d failed, %d not yet built\n", others,
			n.Built-counts.Built, n.Excluded-counts.Excluded, n.Failed-counts.Failed, n.NotYet-counts.NotYet)
	}
	if counts.CheckFailed > 0 {
		fmt.Fprintf(a.stderr, "kofarm: the modules of %d built cells do not fit their kernels and are not packed; see %s\n",
			counts.CheckFailed, filepath.Join(dir, farm.ResultsFile))
	}
	if counts.TestFailed > 0 {
		fmt.Fprintf(a.stderr, "kofarm: the modules of %d built cells are not as expected in their kernels; see %s\n",
			counts.TestFailed, filepath.Join(dir, farm.ResultsFile))
	}
	return nil
}

// exitStatus is a report's.
func exitStatus(r *farm.Report) int {
	counts := r.Counts
	switch {
	case counts.Infrastructure > 0 || slices.ContainsFunc(r.Cells, func(c farm.CellReport) bool { return c.Test != nil && c.Test.Err != nil }):
		return exitInfrastructure
	case counts.Failed > 0 || counts.CheckFailed > 0 || counts.TestFailed > 0 || counts.NotYet > 0:
		return exitFailed
	}
	return exitOK
}

// warnPackages prints each warning with the packages that it is about.
func (a *app) warnPackages(warnings []farm.Warning) {
	if a.quiet {
		return
	}
	for _, w := range warnings {
		fmt.Fprintf(a.stderr, "kofarm: %s: %s\n", strings.Join(w.Files, ", "), w.Text)
	}
}
