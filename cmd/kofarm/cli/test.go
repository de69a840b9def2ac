package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/lock"
)

type testFlags struct {
	accel   string
	timeout time.Duration
	cells   []string
}

func (a *app) testCommand() *cobra.Command {
	var f testFlags
	cmd := &cobra.Command{
		Use:   "test [farm.yaml]",
		Short: "Boot each kernel in qemu and load what was built for it; builds nothing",
		Long: `test boots each kernel of the farm file in qemu and loads the modules that the
store holds for it, each by itself. Modules share a boot; where one is neither
loaded nor refused, it is booted again alone, and that decides. With alone: true
under test in the farm file each module version has a boot of its own.

A verdict is loaded, refused (by the module: its hardware is not there), failed,
rejected (by the kernel), crashed or hung. Verdicts are kept in the store.

Exit status: 0 all verdicts are loaded, refused or what the farm file expects; 1
some are not, or are missing; 3 a kernel does not boot, or qemu does not run.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.test(cmd.Context(), farmArg(args), f)
		},
	}
	cellFlag(cmd, &f.cells, "test")
	a.lockedFlag(cmd)
	cmd.Flags().StringVar(&f.accel, "accel", "", "auto, kvm or tcg (default: the farm file's test.accel, else auto)")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 0, "how long loading a module may take (default: the farm file's test.timeout, else 1m)")
	return cmd
}

// tester makes the tests of a session; settings of the farm file give way to flags.
func (a *app) tester(ctx context.Context, s *session, f testFlags) (*farm.Tests, error) {
	switch boot.Acceleration(f.accel) {
	case "", boot.Auto, boot.KVM, boot.TCG:
	default:
		return nil, fmt.Errorf("--accel %s: want auto, kvm or tcg", f.accel)
	}
	if f.timeout != 0 && f.timeout < matrix.MinTestTimeout {
		return nil, fmt.Errorf("--timeout %v: want at least %v: no module is loaded in less on a busy machine", f.timeout, matrix.MinTestTimeout)
	}
	t := &boot.Tester{Store: s.store, Packages: s.images, Accel: boot.Acceleration(f.accel), Timeout: f.timeout, Log: a.log}
	if set := s.farm.Test; set != nil {
		t.Accel = cmp.Or(t.Accel, boot.Acceleration(set.Accel))
		t.Timeout = cmp.Or(t.Timeout, set.Timeout)
		t.Memory, t.Alone = int64(set.Memory), set.Alone
	}
	var err error
	if t.Shared, err = a.sharedVerdicts(s); err != nil {
		return nil, err
	}
	tests, err := farm.NewTests(s.farm, s.dir, s.store, t)
	if err != nil || !s.farm.Test.Enforces() {
		return tests, err
	}
	if tests.ModuleKey, err = x509Key(ctx, s.farm.File, s.dir, s.farm.Output.SignModules, ""); err != nil {
		return nil, err
	}
	tests.Kernels = s.images
	t.Trust, t.Options = tests.ModuleKey.Certificate(), "module.sig_enforce=1"
	return tests, nil
}

func (a *app) test(ctx context.Context, file string, f testFlags) error {
	s, p, err := a.begin(file)
	if err != nil {
		return err
	}
	if p.Lock, err = readLock(lock.FileName(file)); err != nil {
		return err
	}
	p.Boots = true
	if err := a.prepare(ctx, s, p); err != nil {
		return err
	}
	cells, err := chosen(s.plan.Cells, f.cells)
	if err != nil {
		return err
	}
	cells = farm.WithNeeds(s.plan.Cells, cells)
	tests, err := a.tester(ctx, s, f)
	if err != nil {
		return err
	}
	if err := bootable(s, cells); err != nil {
		return err
	}
	results := farm.Stored(s.store, cells)
	done := a.wait(s, "booting kernels")
	err = tests.Run(ctx, results, a.sayVerdict())
	done()
	if err != nil {
		return classify(err)
	}
	code := testStatus(results)
	if err := a.listVerdicts(a.resultWriter(code == exitOK), results, tests.Tester.Stats()); err != nil || code == exitOK {
		return err
	}
	return &exitError{code: code}
}

// farmTests makes the tests that the farm file asks for, nil if it asks for none,
// and finds out whether they can run: before anything is built.
func (a *app) farmTests(ctx context.Context, s *session) (*farm.Tests, error) {
	if s.farm.Test == nil {
		return nil, nil
	}
	tests, err := a.tester(ctx, s, testFlags{})
	if err != nil {
		return nil, err
	}
	return tests, bootable(s, s.plan.Cells)
}

// bootable finds kernels of cells that cannot be booted here.
func bootable(s *session, cells []*farm.Cell) error {
	for _, c := range cells {
		if c.Excluded || len(c.Boot) == 0 {
			continue
		}
		if err := boot.Supported(c.Kernel.Arch); err != nil {
			return infrastructure(fmt.Errorf("test: %w", err))
		}
		if s.farm.Test.Enforces() && boot.Firmware(c.Kernel.Arch) == "" {
			return s.farm.Mistake(s.farm.Test.Pos, c.Kernel.Arch,
				"signatures: kernels for "+c.Kernel.Arch+" are not booted from UEFI firmware by this version", "signatures: ignore, or no such kernels")
		}
	}
	return nil
}

// knownTests sets the results' tests from the store, if the farm file asks for them.
func (a *app) knownTests(ctx context.Context, s *session, results []*farm.Result) error {
	if s.farm.Test == nil {
		return nil
	}
	tests, err := a.tester(ctx, s, testFlags{})
	if err != nil {
		return err
	}
	return classify(tests.Known(ctx, results))
}

// sayVerdict prints a line for each verdict that is not from the store.
func (a *app) sayVerdict() func(*farm.Result) {
	var mu sync.Mutex
	return func(r *farm.Result) {
		if a.quiet || r.Test.Cached {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(a.stderr, "%-14s %s\n", cmp.Or(string(r.Test.Verdict), "not tested"), r.Cell.Name())
	}
}

// testRow is a cell of `test --json`.
type testRow struct {
	matrix.Row
	Test *farm.Tested `json:"test,omitzero"`
}

// listVerdicts prints every verdict. Quiet, it prints only what is not as
// expected.
func (a *app) listVerdicts(w io.Writer, results []*farm.Result, stats boot.Stats) error {
	if a.json {
		rows := []testRow{}
		for _, r := range results {
			rows = append(rows, testRow{r.Cell.Row(), r.Test})
		}
		return a.encode(struct {
			Version int       `json:"version"`
			Cells   []testRow `json:"cells"`
		}{1, rows})
	}
	counts := map[boot.Verdict]int{}
	untested := 0
	for _, r := range results {
		if r.Outcome == farm.Excluded {
			continue
		}
		if r.Test == nil || r.Test.Verdict == "" {
			untested++
		} else {
			counts[r.Test.Verdict]++
		}
		a.listVerdict(w, r)
	}
	var parts []string
	for _, v := range boot.Verdicts() {
		if counts[v] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[v], v))
		}
	}
	if untested > 0 {
		parts = append(parts, fmt.Sprintf("%d not tested", untested))
	}
	_, err := fmt.Fprintf(w, "%s; %d boots, %.1fs of CPU\n", cmp.Or(strings.Join(parts, ", "), "nothing to test"), stats.Boots, stats.CPU.Seconds())
	return err
}

// listVerdict prints a cell's verdict, its evidence and how to test it again.
func (a *app) listVerdict(w io.Writer, r *farm.Result) {
	wrong := r.Test == nil || r.Test.Wrong()
	if a.quiet && !wrong {
		return
	}
	what, mark := "not tested: "+notBuilt(r), ""
	if r.Test != nil {
		what = r.Test.Summary()
	}
	if wrong {
		mark = "  ✗"
	}
	fmt.Fprintf(w, "%s: %s%s\n", r.Cell.Name(), what, mark)
	for _, line := range r.Test.Evidence() {
		fmt.Fprintf(w, "    %s\n", line)
	}
	if wrong && r.Test != nil {
		fmt.Fprintf(w, "    %s\n", a.rerun(r.Cell.Row().Selector()))
	}
}

// notBuilt says why there are no modules to test, and what to do.
func notBuilt(r *farm.Result) string {
	switch r.Outcome {
	case farm.Failed:
		return "its build has failed: see `kofarm log`"
	case farm.Built:
		return "its modules do not fit the kernel: see `kofarm status`"
	}
	return "it is not built yet: run `kofarm build`"
}

// testStatus turns the tests into the exit status.
func testStatus(results []*farm.Result) int {
	code := exitOK
	for _, r := range results {
		switch {
		case r.Outcome == farm.Excluded:
		case r.Test != nil && r.Test.Err != nil:
			code = exitInfrastructure
		case (r.Test == nil || r.Test.Wrong()) && code == exitOK:
			code = exitFailed
		}
	}
	return code
}
