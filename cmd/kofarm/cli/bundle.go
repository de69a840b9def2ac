package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/report"
	"github.com/kofarm/kofarm/images"
)

func (a *app) bundleCommand() *cobra.Command {
	var output string
	var results bool
	cmd := &cobra.Command{
		Use:   "bundle [farm.yaml] -o FILE",
		Short: "Write one file with everything that the lock names, to build from without a network",
		Long: `bundle writes the farm file, its lock, every package that the lock names (kernels
themselves only where the farm file has tests that boot them) and every source into
one file: an OCI image layout in a tar. kofarm build --bundle FILE builds from it, without network, the
same bytes. The same inputs make the same bundle. Signing keys stay out of it.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output == "" {
				return errors.New("bundle: say where to write it: --output FILE")
			}
			return a.bundle(cmd.Context(), farmArg(args), output, results)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`file` to write")
	cmd.Flags().BoolVar(&results, "results", false, "put the store's results of the cells in, too")
	cmd.AddCommand(a.bundleVerifyCommand())
	return cmd
}

func (a *app) bundle(ctx context.Context, file, output string, results bool) (err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading the farm file: %w", err)
	}
	a.locked = true
	s, p, err := a.load(ctx, file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, infrastructure(s.store.Close())) }()
	if err := s.apart("--output", output); err != nil {
		return err
	}
	b := &farm.Bundler{Store: s.store, Fetch: p.Fetch, Dir: s.dir, Own: p.Own}
	in := farm.BundleInput{Farm: s.farm, Name: filepath.Base(file), Text: text, Lock: p.Lock, Plan: s.plan, Results: results}
	var summary *farm.BundleSummary
	done := a.wait(s, "writing "+output)
	err = replaceFile(output, func(w io.Writer) error {
		summary, err = b.Write(ctx, w, in)
		return err
	})
	done()
	if err != nil {
		return infrastructure(err)
	}
	if a.json {
		return a.encode(summary)
	}
	if !a.quiet {
		fmt.Fprintf(a.stdout, "%s: %d packages, %d sources, %s\n", output, summary.Packages, summary.Sources, report.Bytes(summary.Bytes))
		if results {
			fmt.Fprintf(a.stdout, "%d results; %d cells have none in the store\n", summary.Results, summary.Missing)
		}
	}
	return nil
}

// replaceFile writes a file under a temporary name and renames it.
func replaceFile(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), images.TempPrefix+"*")
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (a *app) bundleVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify FILE",
		Short: "Read a bundle, and say what in it is missing or damaged",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.verifyBundle(cmd.Context(), args[0])
		},
	}
}

// verifyBundle exits with 1 where the bundle is not sound.
func (a *app) verifyBundle(ctx context.Context, name string) (err error) {
	b, err := farm.OpenBundle(name)
	if err != nil {
		return &exitError{exitFailed, err}
	}
	defer func() { err = errors.Join(err, infrastructure(b.Close())) }()
	r, err := b.Verify(ctx)
	if err != nil {
		return infrastructure(err)
	}
	if a.json {
		err = a.encode(r)
	} else if !a.quiet {
		a.printBundle(name, r)
	}
	if err == nil && !r.OK() {
		err = &exitError{code: exitFailed}
	}
	return err
}

func (a *app) printBundle(name string, r *farm.BundleReport) {
	for _, list := range []struct {
		what  string
		lines []string
	}{{"missing", r.Missing}, {"damaged", r.Damaged}, {"problem", r.Problems}} {
		for _, line := range list.lines {
			fmt.Fprintf(a.stdout, "%s: %s\n", list.what, line)
		}
	}
	verdict := "complete"
	if !r.OK() {
		verdict = "not to be used"
	}
	fmt.Fprintf(a.stdout, "%s: %s: %d blobs are right, %s\n", name, verdict, r.Blobs, report.Bytes(r.Bytes))
}

// openBundle makes a session of a bundle. The farm file's output folder and
// signing key are relative to the current folder.
func (a *app) openBundle(ctx context.Context, name string) (_ *session, err error) {
	b, err := farm.OpenBundle(name)
	if err != nil {
		return nil, infrastructure(err)
	}
	st, err := a.openStore()
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	dir, err := os.MkdirTemp(st.TempDir(), "bundle-")
	if err != nil {
		return nil, infrastructure(errors.Join(err, b.Close(), st.Close()))
	}
	in, err := b.Unbundle(ctx, st, dir)
	if err != nil {
		return nil, infrastructure(errors.Join(fmt.Errorf("bundle %s: %w", name, err), os.RemoveAll(dir), b.Close(), st.Close()))
	}
	a.warn(in.Warnings)
	a.offline, a.locked = true, true
	s, p := a.wire(st, in.Farm, ".")
	p.Lock, p.Files = in.Lock, in.Files
	s.bundle, s.unpacked = b, dir
	if err := a.prepare(ctx, s, p); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// close ends the use of a bundle.
func (s *session) close() error {
	if s.bundle == nil {
		return nil
	}
	return errors.Join(os.RemoveAll(s.unpacked), s.bundle.Close())
}
