// Package cli is kofarm's command line: flags, wiring, and what people read.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kofarm/kofarm/farm/report"
	"github.com/kofarm/kofarm/images/fetch"
)

// The exit statuses. A run that a signal ends exits with 130.
const (
	exitOK             = 0 // everything is built or excluded
	exitFailed         = 1 // some cells failed
	exitUsage          = 2 // wrong usage, or a mistake in the farm file
	exitInfrastructure = 3 // the network, the disk, the runtime
	exitInterrupted    = 130
)

// exitError carries an exit status. Its message may be empty: then everything
// has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

func infrastructure(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{exitInfrastructure, err}
}

// app is what the commands share: flags and streams.
type app struct {
	stdout, stderr io.Writer
	terminal       bool // the standard output is one
	log            *slog.Logger

	store   string
	offline bool
	stall   time.Duration
	verbose bool
	quiet   bool
	json    bool
	locked  bool
	own     []string // folders that are no part of a source, beside those of every run

	rerun func(selector string) string // see [rerun]
}

// Run runs the command line and returns the exit status.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	out := &output{w: stdout}
	a := &app{stdout: out, stderr: stderr}
	if f, ok := stdout.(*os.File); ok {
		a.terminal = term.IsTerminal(int(f.Fd()))
	}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if out.err != nil && ctx.Err() == nil {
		err = infrastructure(fmt.Errorf("writing to the standard output: %w", out.err))
	}
	return a.exit(ctx, err)
}

// output keeps the first fault of a stream, which whoever prints need not look at.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// exit prints an error and gives its status.
func (a *app) exit(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil {
		fmt.Fprintln(a.stderr, "kofarm: interrupted; what is built is kept, run the same command to go on")
		return exitInterrupted
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintf(a.stderr, "kofarm: %s\n", msg)
	}
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	return exitUsage
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "kofarm",
		Short: "Build Linux kernel modules for many kernels, in containers, reproducibly",
		Long: `kofarm expands a farm file into a matrix of module versions and kernels, builds
every cell in a container that holds the matching kernel headers, and writes
DKMS tarballs that "dkms ldtarball" loads.

Exit status: 0 all cells are built or excluded; 1 some failed; 2 wrong usage or a
mistake in the farm file; 3 the network, the disk or the runtime; 130 interrupted.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRun: func(cmd *cobra.Command, args []string) {
			level := slog.LevelWarn
			if a.verbose {
				level = slog.LevelDebug
			}
			if a.quiet {
				level = slog.LevelError
			}
			a.stderr = report.NewScreen(a.stderr, a.terminalWidth())
			a.log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
			a.rerun = rerun(cmd, args)
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.store, "store", defaultStore(), "`folder` that keeps downloads, layers and results (or KOFARM_STORE)")
	flags.BoolVar(&a.offline, "offline", false, "use only what is in the store")
	flags.DurationVar(&a.stall, "stall-timeout", fetch.DefaultStall, "how long a mirror may send nothing before the next one is asked")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "say what is being done")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	flags.BoolVar(&a.json, "json", false, "print JSON")
	root.AddCommand(a.buildCommand(), a.testCommand(), a.lockCommand(), a.bundleCommand(), a.packageCommand(), a.planCommand(), a.statusCommand(), a.logCommand(),
		a.verifyCommand(), a.rebuildCellsCommand(), a.signCommand(), a.serveCommand(), a.gcCommand(), a.doctorCommand(), a.versionCommand())
	return root
}

// resultWriter is where what a run has found goes: the standard output. Quiet, only
// what is not as it should be is printed, on the standard error.
func (a *app) resultWriter(ok bool) io.Writer {
	switch {
	case !a.quiet:
		return a.stdout
	case ok:
		return io.Discard
	}
	return a.stderr
}

// encode prints JSON.
func (a *app) encode(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", " ")
	return enc.Encode(v)
}

// lockedFlag adds --locked to a command.
func (a *app) lockedFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.locked, "locked", false, "refuse to go on unless the lock pins exactly what the farm file says")
	return cmd
}

// defaultStore is KOFARM_STORE, else kofarm in the user's cache folder, or "" for
// a user without one.
func defaultStore() string {
	if dir := os.Getenv("KOFARM_STORE"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "kofarm")
}

// farmArg takes the farm file's name, farm.yaml unless it is given.
func farmArg(args []string) string {
	if len(args) == 1 {
		return args[0]
	}
	return "farm.yaml"
}

// farmArgs tells the farm file, by its ending, from other arguments.
func farmArgs(args []string) (file string, others []string) {
	if len(args) > 0 && (strings.HasSuffix(args[0], ".yaml") || strings.HasSuffix(args[0], ".yml")) {
		return args[0], args[1:]
	}
	return farmArg(nil), args
}
