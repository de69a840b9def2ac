package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	parallel int
	daemons  daemonFlags
}

func (a *app) buildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build [farm.yaml]",
		Short: "Build every cell that is not in the store, and write packages and results.json",
		Args:  cobra.MaximumNArgs(1),
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
	progress := report.NewProgress(a.progressWriter(), len(s.plan.Cells), a.terminalWidth())
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
	results, err := b.Build(ctx, s.plan.Cells)
	progress.Close()
	if err != nil {
		return err
	}
	if tests != nil {
		if err := tests.Run(ctx, results, a.sayVerdict()); err != nil {
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

// collect writes the output, and turns it into the exit status.
func (a *app) collect(ctx context.Context, s *session, c *farm.Collector, results []*farm.Result) error {
	collected, err := c.Collect(ctx, results)
	if err != nil {
		return infrastructure(err)
	}
	if collected.Unshared != nil {
		a.log.Warn("the shared cache has not got all that is said about results", "err", collected.Unshared)
	}
	if err := s.store.WriteIndex(); err != nil {
		return infrastructure(err)
	}
	return a.finish(c.Dir, collected)
}

// finish prints what was built, and turns it into the exit status.
func (a *app) finish(dir string, c *farm.Collected) error {
	counts := c.Report.Counts
	switch {
	case a.json:
		data, err := json.MarshalIndent(c.Report, "", " ")
		if err != nil {
			return err
		}
		fmt.Fprintln(a.stdout, string(data))
	case !a.quiet:
		a.warnPackages(c.Packages)
		a.listFailures(dir, c.Report)
		notYet := ""
		if counts.NotYet > 0 {
			notYet = fmt.Sprintf(", %d not yet built", counts.NotYet)
		}
		fmt.Fprintf(a.stdout, "%d built (%d of %d cells were in the store), %d excluded, %d failed%s; %d files in %s\n",
			counts.Built, counts.Cached, len(c.Report.Cells), counts.Excluded, counts.Failed+counts.Infrastructure, notYet, len(c.Report.Files), dir)
	}
	if counts.CheckFailed > 0 && !a.quiet {
		fmt.Fprintf(a.stderr, "kofarm: the modules of %d built cells do not fit their kernels and are not packed; see %s\n",
			counts.CheckFailed, filepath.Join(dir, farm.ResultsFile))
	}
	if err := errors.Join(c.Refused...); err != nil {
		code := exitFailed
		if _, ok := errors.AsType[*farm.LicenseError](err); ok {
			code = exitUsage // the farm file's to mend
		}
		return &exitError{code, err}
	}
	if counts.TestFailed > 0 && !a.quiet {
		fmt.Fprintf(a.stderr, "kofarm: the modules of %d built cells are not as expected in their kernels; see %s\n",
			counts.TestFailed, filepath.Join(dir, farm.ResultsFile))
	}
	switch {
	case counts.Infrastructure > 0 || slices.ContainsFunc(c.Report.Cells, func(c farm.CellReport) bool { return c.Test != nil && c.Test.Err != nil }):
		return &exitError{code: exitInfrastructure}
	case counts.Failed > 0 || counts.CheckFailed > 0 || counts.TestFailed > 0 || counts.NotYet > 0:
		return &exitError{code: exitFailed}
	}
	return nil
}

// listFailures names every cell that is not as it should be, and its log.
func (a *app) listFailures(dir string, r *farm.Report) {
	for _, c := range r.Cells {
		what := ""
		switch {
		case c.Outcome == farm.Failed:
			what = fmt.Sprintf("failed: %s: %s", c.Phase, c.Message)
		case c.Outcome == farm.Infrastructure:
			what = "infrastructure: " + c.Message
		case c.Check != nil && !c.Check.OK:
			p := c.Check.Problems[0]
			what = fmt.Sprintf("check failed: %s: %s: %s", p.Module, p.Kind, p.Detail)
		case c.Test.Wrong():
			what = "test failed: " + c.Test.Summary()
		default:
			continue
		}
		fmt.Fprintf(a.stdout, "%s/%s on %s (%s) %s\n", c.Module, c.Version, c.Release, c.Arch, what)
		if c.Log != "" {
			fmt.Fprintf(a.stdout, "    %s\n", filepath.Join(dir, c.Log))
		}
	}
}

// warnPackages prints each warning once, with the packages that it is about.
func (a *app) warnPackages(packages []farm.Package) {
	of := map[string][]string{}
	var order []string
	for _, p := range packages {
		if p.Warning == "" {
			continue
		}
		if of[p.Warning] == nil {
			order = append(order, p.Warning)
		}
		of[p.Warning] = append(of[p.Warning], p.Name)
	}
	for _, w := range order {
		fmt.Fprintf(a.stderr, "kofarm: %s: %s\n", strings.Join(of[w], ", "), w)
	}
}
