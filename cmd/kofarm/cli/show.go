package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/report"
)

func (a *app) planCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "plan [farm.yaml]",
		Short: "Show the cells, and why each is there or excluded; builds nothing",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.plan(cmd.Context(), farmArg(args))
		},
	}
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
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", " ")
		return enc.Encode(struct {
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
	return &cobra.Command{
		Use:   "status [farm.yaml]",
		Short: "Show what the store holds of the cells; builds nothing",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.status(cmd.Context(), farmArg(args))
		},
	}
}

func (a *app) status(ctx context.Context, file string) error {
	s, err := a.open(ctx, file)
	if err != nil {
		return err
	}
	grid := report.NewGrid()
	for _, c := range s.plan.Cells {
		status, rec := farm.StatusOf(s.store, c)
		grid.Add(c, status, rec)
	}
	if a.json {
		return grid.JSON(a.stdout)
	}
	return grid.Text(a.stdout)
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			version := "(devel)"
			if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
				version = info.Main.Version
			}
			_, err := fmt.Fprintln(a.stdout, "kofarm", version)
			return err
		},
	}
}

// terminal says whether progress goes to a terminal.
func (a *app) terminal() bool {
	f, ok := a.stderr.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

func (a *app) progressWriter() io.Writer {
	if a.quiet {
		return io.Discard
	}
	return a.stderr
}
