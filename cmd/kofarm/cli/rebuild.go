package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/rebuild"
	"github.com/kofarm/kofarm/farm/report"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
)

type rebuildFlags struct {
	cells, runtimes []string
	output, dir     string
	parallel        int
}

// rebuild verifies cells of a farm, or files.
func (a *app) rebuild(ctx context.Context, file string, paths []string, f rebuildFlags) (err error) {
	if f.parallel < 0 {
		return fmt.Errorf("--parallel %d: a number of builds, or 0 for one for each core", f.parallel)
	}
	s, err := a.open(ctx, file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, infrastructure(s.store.Close())) }()
	if err := s.apart("--differences", f.dir); err != nil {
		return err
	}
	cells, err := chosen(s.plan.Cells, f.cells)
	if err != nil {
		return err
	}
	runtimes := f.runtimes
	if len(runtimes) == 0 {
		runtimes = []string{""}
	}
	for i, name := range runtimes {
		rt, err := (&daemonFlags{name: name}).runtime(s.farm)
		if err != nil {
			return err
		}
		runtimes[i] = rt.name
	}
	if file, err = filepath.Abs(file); err != nil {
		return err
	}
	v := &rebuild.Verifier{Store: s.store, Runtimes: runtimes, Log: a.log, Dir: f.dir,
		Rebuilder: &again{app: a, store: s.store, file: file, parallel: f.parallel}}
	var r *rebuild.Report
	if len(paths) > 0 {
		r, err = v.Files(ctx, cells, s.output(f.output), paths)
	} else {
		r, err = v.Cells(ctx, cells, s.output(f.output))
	}
	if err != nil {
		return infrastructure(err)
	}
	return a.verdict(r)
}

// verdict prints what was found, and turns it into the exit status. Quiet, it
// prints only what is not reproduced.
func (a *app) verdict(r *rebuild.Report) error {
	if a.json {
		if err := a.encode(r); err != nil {
			return err
		}
	} else {
		a.printVerdicts(a.resultWriter(r.Verdict() == rebuild.Reproduced), r)
	}
	switch r.Verdict() {
	case rebuild.Differs:
		return &exitError{code: exitFailed}
	case rebuild.Cannot:
		return &exitError{code: exitInfrastructure}
	}
	return nil
}

func (a *app) printVerdicts(w io.Writer, r *rebuild.Report) {
	for _, c := range r.Cells {
		if a.quiet && c.Verdict == rebuild.Reproduced {
			continue
		}
		fmt.Fprintf(w, "%-11s %s/%s on %s (%s)%s\n", c.Verdict, c.Module, c.Version, c.Release, c.Arch, because(c.Reason))
		for _, f := range c.Files {
			if f.Verdict == rebuild.Differs {
				printFile(w, f, "    ", shownDifferences)
			}
		}
		for _, cause := range c.Causes {
			word := "perhaps"
			if cause.Proven {
				word = "cause"
			}
			fmt.Fprintf(w, "    %s: %s: %s\n", word, cause.Kind, cause.Detail)
		}
	}
	for _, f := range r.Files {
		if a.quiet && f.Verdict == rebuild.Reproduced {
			continue
		}
		printFile(w, f, "", 1) // more is said of the cell
	}
	fmt.Fprintf(w, "%d files are reproduced, %d differ, %d cannot be verified\n",
		r.Counts[string(rebuild.Reproduced)], r.Counts[string(rebuild.Differs)], r.Counts[string(rebuild.Cannot)])
	if len(r.Varied) > 0 {
		fmt.Fprintf(w, "varied, on %s: %s\n", strings.Join(r.Runtimes, " and "), strings.Join(r.Varied, ", "))
	}
}

// shownDifferences is how many differences of a file are printed.
const shownDifferences = 6

func printFile(w io.Writer, f rebuild.FileVerdict, indent string, places int) {
	signed := ""
	if f.Signed {
		signed = ", but for signatures"
	}
	fmt.Fprintf(w, "%s%-11s %s%s%s\n", indent, f.Verdict, f.Path, signed, because(f.Reason))
	for i, d := range f.Differences {
		if i == places {
			fmt.Fprintf(w, "%s    and %d more places\n", indent, len(f.Differences)-i)
			break
		}
		fmt.Fprintf(w, "%s    %s\n", indent, d)
	}
	if f.Kept != "" {
		fmt.Fprintf(w, "%s    both versions: %s.was, %s.rebuilt\n", indent, f.Kept, f.Kept)
	}
	if f.Diffoscope != "" {
		fmt.Fprintf(w, "%s    diffoscope says: %s\n", indent, f.Diffoscope)
	}
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// again builds cells again, by a process of kofarm's own with a store of its own.
type again struct {
	app      *app
	store    *store.Store
	file     string // the farm file, absolute
	parallel int
	said     []string // what was said already
}

// errand is what the other process is asked for, as JSON on its standard input.
// When that is closed the process ends.
type errand struct {
	Run      string              `json:"run"` // folder of runtimes
	Keys     []string            `json:"keys"`
	Runtime  string              `json:"runtime"`
	Vary     []rebuild.Variation `json:"vary"`
	Frozen   int64               `json:"frozen"`
	Jobs     int                 `json:"jobs"`
	Parallel int                 `json:"parallel"`
	Retries  int                 `json:"retries"` // negative: as the farm file says
	Umask    int                 `json:"umask"`   // 0: as it is
	Output   string              `json:"output"`
	Own      []string            `json:"own"` // folders that are no part of a source
}

// What the other process runs under, where that is varied.
const (
	otherUID    = 60989 // nobody has it
	otherUmask  = 0o027
	otherZone   = "Asia/Kathmandu"
	otherLocale = "tr_TR.UTF-8"
)

// Rebuild implements [rebuild.Rebuilder].
func (g *again) Rebuild(ctx context.Context, run rebuild.Run) (*rebuild.Rebuilt, error) {
	var why error
	if run.Outside && run.Runtime == matrix.Embedded && os.Geteuid() == 0 {
		why = reachable(g.store.TempDir())
		if why == nil {
			b, err := g.rebuild(ctx, run, otherUID)
			if err == nil || ctx.Err() != nil {
				return b, err
			}
			why = err
		}
		g.say(fmt.Sprintf("the user is not varied: %v", why))
	}
	return g.rebuild(ctx, run, 0)
}

// say prints a line once.
func (g *again) say(line string) {
	if !g.app.quiet && !slices.Contains(g.said, line) {
		g.said = append(g.said, line)
		fmt.Fprintf(g.app.stderr, "kofarm: %s\n", line)
	}
}

// reachable tells whether every user can enter a folder.
func reachable(dir string) error {
	for ; dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("an ordinary user cannot enter %s", dir)
		}
	}
	return nil
}

// rebuild builds cells as another user, or as this one for 0.
func (g *again) rebuild(ctx context.Context, run rebuild.Run, uid int) (_ *rebuild.Rebuilt, err error) {
	dir, err := os.MkdirTemp(g.store.TempDir(), fmt.Sprintf("verify-%d-", os.Getpid()))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	folder := filepath.Join(dir, "store")
	if err := cloneStore(g.store.Dir(), folder, uid != 0); err != nil {
		return nil, fmt.Errorf("preparing another store: %w", err)
	}
	e := errand{Runtime: run.Runtime, Vary: run.Vary, Frozen: run.Frozen, Jobs: run.Jobs, Parallel: g.parallel, Retries: -1,
		Run: g.store.Dir(), Output: filepath.Join(dir, "dist"), Own: []string{g.store.Dir()}}
	for _, c := range run.Cells {
		e.Keys = append(e.Keys, c.Key)
	}
	varied := []string{}
	if run.Outside {
		e.Umask = otherUmask
		varied = append(varied, "the umask", "the time zone", "the locale")
	}
	if uid != 0 {
		e.Run, e.Retries = folder, 0 // there is another way
		varied = append(varied, "kofarm's user")
		if err := give(dir, uid); err != nil {
			return nil, err
		}
	}
	if err := g.send(ctx, dir, folder, e, run.Outside, uid); err != nil {
		return nil, err
	}
	b := &rebuild.Rebuilt{Dist: e.Output, Varied: varied}
	if b.Report, err = farm.ReadReport(filepath.Join(e.Output, farm.ResultsFile)); err != nil {
		return nil, err
	}
	if uid != 0 && b.Report.Counts.Infrastructure > 0 {
		return nil, fmt.Errorf("%d cells cannot be built as an ordinary user: %s", b.Report.Counts.Infrastructure, firstFault(b.Report))
	}
	if b.Store, err = store.Open(folder); err != nil {
		return nil, err
	}
	b.Close = func() error { return errors.Join(b.Store.Close(), os.RemoveAll(dir)) }
	return b, nil
}

func firstFault(r *farm.Report) string {
	for _, c := range r.Cells {
		if c.Outcome == farm.Infrastructure {
			return c.Message
		}
	}
	return ""
}

// cloneStore makes a store with the downloads and layers of another one, and
// none of its results. Where an ordinary user will use it, it also has the
// layers that are unpacked there: nobody writes to those.
func cloneStore(from, to string, unpacked bool) error {
	for _, part := range []string{"cache", "refs/layer", "refs/symvers", "blobs"} { // a blob is there before its ref
		if err := cloneTree(filepath.Join(from, part), filepath.Join(to, part)); err != nil {
			return err
		}
	}
	if !unpacked {
		return nil
	}
	layers := filepath.Join(from, "run", "layers")
	if err := os.MkdirAll(filepath.Join(to, "run", "layers"), 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(layers)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && err == nil && open(filepath.Join(layers, e.Name())) {
			err = os.Symlink(filepath.Join(layers, e.Name()), filepath.Join(to, "run", "layers", e.Name()))
		}
	}
	return err
}

// open tells whether everybody can enter the folders at the top of an unpacked
// layer. The base has a /root that is its owner's.
func open(layer string) bool {
	entries, err := os.ReadDir(layer)
	for _, e := range entries {
		if info, ierr := e.Info(); ierr != nil || e.IsDir() && info.Mode()&0o001 == 0 {
			return false
		}
	}
	return err == nil
}

// cloneTree links all files; what somebody removes meanwhile is left out.
func cloneTree(from, to string) error {
	return filepath.WalkDir(from, func(p string, e os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		err = os.Link(p, filepath.Join(to, rel))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
}

// give makes a user the owner of all folders below dir. Files stay whose they are.
func give(dir string, uid int) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		return os.Chown(p, uid, uid)
	})
}

// endTime is how long the other process may take to end its containers.
const endTime = 30 * time.Second

// send runs the other process.
func (g *again) send(ctx context.Context, dir, folder string, e errand, outside bool, uid int) error {
	program := "/proc/self/exe"
	if uid != 0 { // which may not be able to reach it
		program = filepath.Join(dir, "kofarm")
		if err := copyProgram(program); err != nil {
			return err
		}
	}
	args := []string{"--store", folder, "--stall-timeout", g.app.stall.String()}
	for flag, set := range map[string]bool{"--offline": g.app.offline, "--verbose": g.app.verbose, "--quiet": g.app.quiet} {
		if set {
			args = append(args, flag)
		}
	}
	cmd := exec.CommandContext(ctx, program, append(args, rebuildCells, g.file)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir, "KOFARM_STORE="+folder)
	if outside {
		cmd.Env = append(cmd.Env, "TZ="+otherZone, "LC_ALL="+otherLocale, "LANG="+otherLocale)
	}
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	cmd.Stderr = g.app.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endTime
	in, err := cmd.StdinPipe() // stays open as long as this process lives
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = json.NewEncoder(in).Encode(e)
	if werr := cmd.Wait(); werr != nil {
		return werr
	}
	return err
}

func copyProgram(to string) error {
	r, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer r.Close() // only read
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Chmod(0o755), w.Close())
}

// rebuildCells is the name of the command that the other process runs.
const rebuildCells = "rebuild-cells"

func (a *app) rebuildCellsCommand() *cobra.Command {
	return &cobra.Command{
		Use: rebuildCells + " farm.yaml", Short: "Do what verify asks for", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := json.NewDecoder(cmd.InOrStdin())
			var e errand
			if err := in.Decode(&e); err != nil {
				return fmt.Errorf("reading what to build: %w", err)
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			go func() {
				_, _ = io.Copy(io.Discard, cmd.InOrStdin())
				cancel()
			}()
			return a.rebuildCells(ctx, args[0], e)
		},
	}
}

// rebuildCells builds cells with variations, and packs them without signatures.
func (a *app) rebuildCells(ctx context.Context, file string, e errand) (err error) {
	if e.Umask != 0 {
		syscall.Umask(e.Umask)
	}
	a.own = e.Own
	s, err := a.open(ctx, file)
	if err != nil {
		return err
	}
	cells := farm.WithNeeds(s.plan.Cells, slices.DeleteFunc(slices.Clone(s.plan.Cells), func(c *farm.Cell) bool { return c.Excluded || !slices.Contains(e.Keys, c.Key) }))
	rt, err := (&daemonFlags{name: e.Runtime}).runtime(s.farm)
	if err != nil {
		return err
	}
	progress := report.NewProgress(a.screen(), len(cells), s.downloads)
	defer progress.Close()
	rt.store, rt.parallel = e.Run, cmp.Or(e.Parallel, s.farm.Build.Parallel)
	rt.say = func(line string) { progress.Note("kofarm: " + line) }
	runner, err := a.openRunner(ctx, rt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, infrastructure(runner.close(ctx))) }()
	retries := e.Retries
	if retries < 0 {
		retries = s.farm.Build.Retries
	}
	b := &farm.Builder{
		Store: s.store, Images: s.images, Runner: &rebuild.Runner{Next: runner, Vary: e.Vary, Frozen: e.Frozen, Jobs: e.Jobs},
		Observer: progress, Log: a.log, Limits: limits(s.farm), Cores: runner.cores, Parallel: rt.parallel, Retries: retries,
	}
	results, err := b.Build(ctx, cells)
	progress.Close()
	if err != nil {
		return err
	}
	c, err := unsigned(s, e.Output)
	if err != nil {
		return err
	}
	_, err = c.Collect(ctx, results)
	return infrastructure(err)
}

// unsigned writes packages as the farm file has them, without any signature and
// without repositories.
func unsigned(s *session, dir string) (*farm.Collector, error) {
	epoch, err := sourceDateEpoch()
	if err != nil {
		return nil, err
	}
	out := s.farm.Output
	out.Sign, out.SignModules, out.Attest = nil, nil, nil
	if out.Deb != nil {
		deb := *out.Deb
		deb.Repository = nil
		out.Deb = &deb
	}
	if out.RPM != nil {
		rpm := *out.RPM
		rpm.Repository = nil
		out.RPM = &rpm
	}
	return &farm.Collector{Store: s.store, Dir: dir, Output: out, Epoch: epoch, Kernels: s.images}, nil
}
