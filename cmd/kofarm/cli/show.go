package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/report"
	"github.com/kofarm/kofarm/images/store"
)

func (a *app) planCommand() *cobra.Command {
	return a.lockedFlag(&cobra.Command{
		Use:   "plan [farm.yaml]",
		Short: "Show the cells, and why each is there or excluded; builds nothing",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.plan(cmd.Context(), farmArg(args))
		},
	})
}

// planRow is a cell of `plan --json`.
type planRow struct {
	*farm.Cell
	Key string
}

func (r planRow) MarshalJSON() ([]byte, error) {
	data, err := json.Marshal(r.Row())
	if err != nil || r.Key == "" {
		return data, err
	}
	return append(data[:len(data)-1], fmt.Appendf(nil, `,"key":%q}`, r.Key)...), nil
}

func (a *app) plan(ctx context.Context, file string) error {
	s, err := a.open(ctx, file)
	if err != nil {
		return err
	}
	if a.json {
		rows := make([]planRow, len(s.plan.Cells))
		for i, c := range s.plan.Cells {
			rows[i] = planRow{c, c.Key}
		}
		return a.encode(struct {
			Version int       `json:"version"`
			Cells   []planRow `json:"cells"`
		}{1, rows})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "MODULE\tVERSION\tKERNEL\tARCH\tSUITE\tBUILD\tWHY")
	for _, c := range s.plan.Cells {
		build := "yes"
		if c.Excluded {
			build = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Module.Name, c.Module.Version, c.Kernel.Release, c.Kernel.Arch, c.Kernel.Suite, build, c.Why)
	}
	return w.Flush()
}

func (a *app) statusCommand() *cobra.Command {
	return a.lockedFlag(&cobra.Command{
		Use:   "status [farm.yaml]",
		Short: "Show what the store holds of the cells; builds nothing",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.status(cmd.Context(), farmArg(args))
		},
	})
}

func (a *app) status(ctx context.Context, file string) error {
	s, err := a.open(ctx, file)
	if err != nil {
		return err
	}
	results := farm.Stored(s.store, s.plan.Cells)
	if err := a.knownTests(ctx, s, results); err != nil {
		return err
	}
	grid := report.NewGrid()
	for i, c := range s.plan.Cells {
		status, rec := farm.StatusOf(s.store, c)
		grid.Add(c, status, rec, results[i].Test)
	}
	if a.json {
		return grid.JSON(a.stdout)
	}
	return grid.Text(a.stdout)
}

func (a *app) logCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "log MODULE[/VERSION] KERNEL [farm.yaml]",
		Short: "Print the log of a cell's last build, from the store",
		Args:  cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.printLog(cmd.Context(), args[0], args[1], farmArg(args[2:]))
		},
	}
}

func (a *app) printLog(ctx context.Context, module, release, file string) error {
	s, err := a.open(ctx, file)
	if err != nil {
		return err
	}
	name, version, _ := strings.Cut(module, "/")
	var errs []error // why there is no log
	for _, c := range s.plan.Cells {
		if c.Module.Name != name || c.Kernel.Release != release || (version != "" && c.Module.Version != version) {
			continue
		}
		if c.Excluded {
			errs = append(errs, fmt.Errorf("%s is not built: %s", c.Name(), c.Why))
			continue
		}
		log, err := farm.OpenLog(s.store, c)
		if errors.Is(err, store.ErrNotFound) {
			errs = append(errs, fmt.Errorf("%s has not been built yet", c.Name()))
			continue
		}
		if err != nil {
			return infrastructure(err)
		}
		var text io.Reader = log
		if a.terminal {
			text = report.Visible(log)
		}
		_, err = io.Copy(a.stdout, text)
		if err := errors.Join(err, log.Close()); err != nil {
			return infrastructure(err)
		}
		a.sayStatus(s.store, c)
		return nil
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return fmt.Errorf("%s has no cell %s on %s; `kofarm plan` lists them", file, module, release)
}

// sayStatus tells what is wrong with a cell. A log does not always: it ends where
// a build is stopped, and the modules are checked afterwards.
func (a *app) sayStatus(s *store.Store, c *farm.Cell) {
	status, rec := farm.StatusOf(s, c)
	if rec == nil || a.quiet {
		return
	}
	for _, why := range rec.Reasons() {
		fmt.Fprintf(a.stderr, "kofarm: %s: %s: %s\n", c.Name(), status, why)
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.stdout, "kofarm", version())
			return err
		},
	}
}

// version is kofarm's own.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// terminalWidth is the width of the terminal that progress goes to, 0 where it
// goes to none.
func (a *app) terminalWidth() int {
	f, ok := a.stderr.(*os.File)
	if !ok || a.quiet || os.Getenv("TERM") == "dumb" || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		return 0
	}
	return width
}

// screen is where progress is shown: the standard error, or nowhere.
func (a *app) screen() *report.Screen {
	if s, ok := a.stderr.(*report.Screen); ok && !a.quiet {
		return s
	}
	return report.NewScreen(io.Discard, 0)
}
