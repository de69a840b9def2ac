package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/matrix/lock"
)

func (a *app) lockCommand() *cobra.Command {
	var update bool
	cmd := &cobra.Command{
		Use:   "lock [farm.yaml] [--update [WHAT...]]",
		Short: "Pin every input of the cells in farm.lock, and print what has changed",
		Long: `lock writes farm.lock beside the farm file: the kernels that its selectors choose,
and each package and source with version, size and sha256. Builds, plan, status and
package use it from then on, and need no index.

What is pinned stays, and only what the farm file has come to ask for beside it is
resolved. --update moves on: all, or what the arguments name: a module, a suite, a
kernel release or a package; each may be a glob. No package is downloaded.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			file, what := farmArgs(args)
			if len(what) > 0 && !update {
				return fmt.Errorf("%q: only with --update is there something to name; a farm file ends in .yaml or .yml", what[0])
			}
			return a.lock(cmd.Context(), file, update, what)
		},
	}
	cmd.Flags().BoolVar(&update, "update", false, "resolve anew what is named, or all")
	return cmd
}

func (a *app) lock(ctx context.Context, file string, update bool, what []string) (err error) {
	s, p, err := a.begin(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, infrastructure(s.store.Close())) }()
	name := lock.FileName(file)
	old, err := readLock(name)
	broken := (*lock.Error)(nil)
	if update && len(what) == 0 && errors.As(err, &broken) {
		old, err = nil, nil // it is made anew
	}
	if err != nil {
		return err
	}
	if p.Lock, err = keep(old, update, what); err != nil {
		return err
	}
	done := a.wait(s, planning)
	pinned, err := p.Pin(ctx, s.farm)
	done()
	if err != nil {
		return classify(err)
	}
	a.warn(pinned.Warnings)
	for _, left := range pinned.Left {
		a.log.Warn("not pinned", "cell", left)
	}
	changed, err := writeLock(name, pinned.Lock)
	if err != nil {
		return infrastructure(err)
	}
	return a.printLock(name, changed, lock.Diff(old, pinned.Lock), pinned)
}

// keep is what of the old lock stays.
func keep(old *lock.Lock, update bool, what []string) (*lock.Lock, error) {
	switch {
	case old == nil || update && len(what) == 0:
		if len(what) > 0 {
			return nil, fmt.Errorf("--update %s: there is no lock yet; kofarm lock makes one", strings.Join(what, " "))
		}
		return nil, nil
	case !update:
		return old, nil
	}
	kept, unknown := old.Without(what)
	if len(unknown) > 0 {
		return nil, fmt.Errorf("--update: the lock has no module, suite, kernel or package %s", strings.Join(unknown, ", "))
	}
	return kept, nil
}

// writeLock writes a lock unless its file has that content already.
func writeLock(name string, l *lock.Lock) (changed bool, err error) {
	data := l.Bytes()
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	return true, replaceFile(name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func (a *app) printLock(name string, changed bool, changes []lock.Change, pinned *farm.Pinned) error {
	if a.json {
		if changes == nil {
			changes = []lock.Change{}
		}
		return a.encode(struct {
			Version int           `json:"version"`
			Lock    string        `json:"lock"`
			Changed bool          `json:"changed"`
			Changes []lock.Change `json:"changes"`
		}{1, name, changed, changes})
	}
	if a.quiet {
		return nil
	}
	kernels, packages := 0, 0
	for _, s := range pinned.Lock.Suites {
		kernels += len(s.Kernels)
		packages += len(s.Packages())
	}
	where := ""
	for _, c := range changes {
		if c.Where != where {
			where = c.Where
			fmt.Fprintf(a.stdout, "%s:\n", where)
		}
		fmt.Fprintf(a.stdout, "  %s\n", c)
	}
	is := "is written"
	if !changed {
		is = "stays as it is"
	}
	_, err := fmt.Fprintf(a.stdout, "%s %s: %d sources, %d kernels, %d packages\n", name, is, len(pinned.Lock.Modules), kernels, packages)
	return err
}
