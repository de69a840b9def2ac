package boot

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kofarm/kofarm/farm/boot/efivars"
	"github.com/kofarm/kofarm/images/store"
)

// Defaults of a Tester.
const (
	DefaultTimeout = 60 * time.Second
	DefaultMemory  = 256 << 20
)

// Most that is booted for a verdict.
const (
	maxUnits   = 64       // in one boot
	maxModules = 64 << 20 // bytes of the modules of several units in one
	// maxStarts is how often a boot is tried that does not come up: it is the
	// machine's fault, not a module's.
	maxStarts = 3
	// maxTries is how often a module is booted alone until two verdicts agree.
	maxTries = 3
	// maxSteps is how many steps a boot has time for that take as long as they may.
	maxSteps = 20
)

// The time that a kernel may take until init.sh reports: with KVM it is there in
// a second, or never.
const (
	firstKVM = 8 * time.Second
	firstTCG = 90 * time.Second
)

// Tester finds out what kernels make of modules. It is safe for concurrent use.
type Tester struct {
	Store    *store.Store
	Packages Packages
	Accel    Acceleration  // "": Auto
	Timeout  time.Duration // that one step of a module may take, as loading it; 0: DefaultTimeout
	Memory   int64         // bytes of a guest; 0: DefaultMemory
	Options  string        // more of the kernel's command line, as module.sig_enforce=1
	Alone    bool          // units do not share boots, and a verdict that was found otherwise does not count
	Trust    []byte        // a certificate in DER that UEFI firmware tells the kernel to trust; nil: none, or no firmware
	Shared   Shared        // verdicts that others have found; nil: there are none
	Log      *slog.Logger

	mu    sync.Mutex
	noKVM bool
	stats Stats
	once  sync.Map // kernels' digests → func() (*prepared, error)
}

// Stats counts what a Tester has done.
type Stats struct {
	Boots int
	CPU   time.Duration // of qemu
	Wall  time.Duration
	KVM   int // of Boots
}

// Stats gives the counts until now.
func (t *Tester) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stats
}

// Result is what a test has given.
type Result struct {
	Report *Report
	Cached bool  // not booted anew
	Err    error // why there is no report: the kernel does not boot, or qemu does not run
}

// Supported says whether kernels of an architecture can be booted here.
func Supported(arch string) error {
	m, ok := machines[arch]
	if !ok {
		return fmt.Errorf("kernels for %s cannot be booted by this version", arch)
	}
	if _, err := exec.LookPath(m.qemu); err != nil {
		return fmt.Errorf("%s is not installed: apt install %s, or take test: out of the farm file", m.qemu, m.deb)
	}
	return nil
}

// Host is what this machine has to boot kernels of an architecture with.
type Host struct {
	Arch    string // DKMS's name
	Program string // qemu's
	Package string // Debian's, of it
	Version string // what qemu says of itself; "": it is not there, or does not run
	Err     error  // why there is no version
	KVM     bool   // it may be used; whether kernels boot with it the first boot shows
}

// Hosts says for each architecture what this machine has.
func Hosts(ctx context.Context) []Host {
	var hosts []Host
	for _, arch := range slices.Sorted(maps.Keys(machines)) {
		m := machines[arch]
		h := Host{Arch: arch, Program: m.qemu, Package: m.deb, KVM: m.native() && kvmUsable()}
		out, err := exec.CommandContext(ctx, m.qemu, "--version").Output()
		h.Version, _, _ = strings.Cut(string(out), "\n")
		if h.Err = err; err == nil && h.Version == "" {
			h.Err = fmt.Errorf("%s does not say its version", m.qemu)
		}
		hosts = append(hosts, h)
	}
	return hosts
}

// Test finds the verdicts on units, in their order: from the store, or by
// booting the kernel, as seldom as that can be. finished, unless it is nil, is
// told of each. The error is the context's or the disk's.
//
// Units share a boot, but not two that have the same module (see batches). In such
// a boot it is enough for a unit to be loaded, or to refuse itself: any other
// verdict is found again by booting the unit alone, and that decides. Behind a unit
// that leaves the kernel with a fault, or itself, the rest is booted anew. Where one
// that has crashed is well alone, those before it in the boot are tested alone,
// too, since one of them may have left the fault behind.
func (t *Tester) Test(ctx context.Context, k Kernel, units []*Unit, finished func(i int, r Result)) ([]Result, error) {
	results := make([]Result, len(units))
	settle := func(i int, r Result) {
		results[i] = r
		if finished != nil {
			finished(i, r)
		}
	}
	var missing []int
	for i, u := range units {
		if r := t.known(ctx, k, u); r != nil {
			settle(i, Result{Report: r, Cached: true})
			continue
		}
		missing = append(missing, i)
	}
	if len(missing) == 0 {
		return results, nil
	}
	s, err := t.begin(ctx, k)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		for _, i := range missing {
			settle(i, Result{Err: err})
		}
		return results, nil
	}
	defer s.close()
	loaded := make([]*loading, len(missing))
	for n, i := range missing {
		if loaded[n], err = units[i].load(s.index); err != nil {
			return nil, err
		}
	}
	most := maxUnits
	if t.Alone {
		most = 1
	}
	for _, places := range batches(loaded, most) {
		var batch []*loading
		for _, n := range places {
			batch = append(batch, loaded[n])
		}
		err := s.batch(ctx, batch, func(n int, r Result) error {
			i := missing[places[n]]
			settle(i, r)
			if r.Err != nil {
				return nil
			}
			return t.save(ctx, k, units[i], r.Report)
		})
		if err != nil {
			return nil, err
		}
	}
	return results, nil
}

// Prepare reads a kernel's packages into the store, and those of its modules that
// the names, or aliases, need: what else the first boot would do.
func (t *Tester) Prepare(ctx context.Context, k Kernel, names ...string) error {
	l := &library{t.Store, t.Packages}
	p, err := l.prepare(ctx, k)
	if err != nil {
		return err
	}
	own, _ := p.index.closure(names, nil)
	_, err = l.modules(ctx, p, own)
	return err
}

// session tests units of one kernel.
type session struct {
	*Tester
	*prepared
	library *library
	dir     string // for files that qemu reads
	up      bool   // the kernel has come up
	down    error  // why it does not, with nothing to load
}

func (t *Tester) begin(ctx context.Context, k Kernel) (*session, error) {
	if err := Supported(k.Arch); err != nil {
		return nil, err
	}
	if t.Accel == KVM && !machines[k.Arch].native() {
		return nil, fmt.Errorf("KVM does not run kernels for %s here: accel auto or tcg emulates them", k.Arch)
	}
	if t.Trust != nil && k.uefi() == nil {
		return nil, fmt.Errorf("kernel %s is not booted from UEFI firmware, which would have it trust a certificate", k.Release)
	}
	l := &library{t.Store, t.Packages}
	once, _ := t.once.LoadOrStore(k.digest(), sync.OnceValues(func() (*prepared, error) { return l.prepare(ctx, k) }))
	p, err := once.(func() (*prepared, error))()
	if err != nil {
		return nil, err
	}
	s := &session{Tester: t, prepared: p, library: l}
	if s.dir, err = os.MkdirTemp(t.Store.TempDir(), "boot-"); err != nil {
		return nil, err
	}
	err = copyBlob(t.Store, p.image, s.kernelFile())
	if p.uefi() != nil {
		err = errors.Join(err, copyBlob(t.Store, p.code, s.codeFile()))
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *session) kernelFile() string    { return filepath.Join(s.dir, "kernel") }
func (s *session) initramfsFile() string { return filepath.Join(s.dir, "initramfs") }
func (s *session) codeFile() string      { return filepath.Join(s.dir, "code") }
func (s *session) variablesFile() string { return filepath.Join(s.dir, "variables") }
func (s *session) close() error          { return os.RemoveAll(s.dir) }

// batch tests units together, as far as that can be. settle is told of each unit
// once.
func (s *session) batch(ctx context.Context, units []*loading, settle func(i int, r Result) error) error {
	return portions(len(units), func(from, to int) (done int, err error) {
		results, err := s.together(ctx, units[from:to])
		if err != nil {
			return 0, err
		}
		for i, r := range results {
			if err := settle(from+i, r); err != nil {
				return 0, err
			}
		}
		return len(results), nil
	})
}

// portions does n things, as many at a time as can be: all at first, half as many
// where do gets none of several done, and twice as many where it does.
func portions(n int, do func(from, to int) (done int, err error)) error {
	most := n
	for from := 0; from < n; {
		to := min(n, from+most)
		done, err := do(from, to)
		if err != nil {
			return err
		}
		if from += done; done > 0 {
			most = min(n, 2*most)
		} else {
			most = max(1, (to-from)/2)
		}
	}
	return nil
}

// together boots units, and finds the verdicts on those that the boot has got to.
// There is none where several do not come up together, but the kernel does. The
// error is the context's.
func (s *session) together(ctx context.Context, units []*loading) ([]Result, error) {
	err := s.down
	var run *bootRun
	var c *crash
	if err == nil {
		run, c, err = s.boot(ctx, units)
	}
	if err == nil {
		s.up = true
		return s.judgeBoot(ctx, units[:len(run.units)], run, c)
	}
	if !s.up && s.down == nil {
		_, _, s.down = s.boot(ctx, nil)
		s.up = s.down == nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if s.up && len(units) > 1 {
		return nil, nil
	}
	results := make([]Result, len(units))
	for i := range results {
		results[i].Err = err
	}
	return results, nil
}

// judgeBoot finds the verdicts on the units that a boot has got to. The error is
// the context's.
func (s *session) judgeBoot(ctx context.Context, units []*loading, run *bootRun, c *crash) ([]Result, error) {
	n := len(units)
	if n == 1 && !run.faulty {
		r, err := s.decide(ctx, units[0], run, c)
		return []Result{{Report: r, Err: err}}, ctx.Err()
	}
	results := judgeShared(units, run, c)
	ended := c != nil || run.faulty
	for i := n - 1; i >= 0; i-- {
		if results[i].Report != nil {
			continue
		}
		results[i] = s.alone(ctx, units[i])
		if i == n-1 && ended && results[i].Err == nil && !worse(results[i].Report.Verdict, Rejected) {
			clear(results[:i]) // one of those before has left the fault behind
		}
	}
	return results, ctx.Err()
}

// judgeShared makes reports on those units of a boot for which it is enough; those
// without are to be booted alone.
func judgeShared(units []*loading, run *bootRun, c *crash) []Result {
	results := make([]Result, len(units))
	for i, u := range units {
		if i == len(units)-1 && (c != nil || run.faulty) {
			break
		}
		r := judge(u, &run.units[i], nil)
		if r.Verdict == Loaded || r.Verdict == Refused && !run.units[i].asks() {
			r.Beside = beside(units, i)
			results[i].Report = r
		}
	}
	return results
}

// beside lists the versions of the units in a boot but one.
func beside(units []*loading, i int) []string {
	var others []string
	for n, u := range units {
		if n != i {
			others = append(others, u.Version)
		}
	}
	return others
}

// alone boots a unit by itself.
func (s *session) alone(ctx context.Context, u *loading) Result {
	run, c, err := s.boot(ctx, []*loading{u})
	if err != nil {
		return Result{Err: err}
	}
	r, err := s.decide(ctx, u, run, c)
	return Result{Report: r, Err: err}
}

// maxAsked is how often a unit is booted again with what it has asked for.
const maxAsked = 3

// decide makes the report on a unit that was booted alone.
//
// It is booted again where it was not loaded when the kernel asked for modules, on
// its behalf, which no dependency tells of (request_module: a cipher's mode, a
// protocol), as far as the kernel has them. Where they are loaded before, does it
// load?
func (s *session) decide(ctx context.Context, u *loading, run *bootRun, c *crash) (*Report, error) {
	r := judge(u, &run.units[0], c)
	for range maxAsked {
		if r.Verdict == Loaded || worse(r.Verdict, Rejected) {
			break
		}
		more := s.requested(u, &run.units[0])
		if len(more) == 0 {
			break
		}
		u.asked = append(u.asked, more...)
		u.arrange(s.index, slices.Concat(u.First, u.asked, u.names))
		var err error
		if run, c, err = s.boot(ctx, []*loading{u}); err != nil {
			return nil, err
		}
		r = judge(u, &run.units[0], c)
	}
	return s.confirm(ctx, u, r)
}

// requested lists the modules of the kernel's own that were asked for and not
// there.
func (s *session) requested(u *loading, run *unitRun) []string {
	var names []string
	for _, step := range run.steps {
		names = append(names, step.requests...)
	}
	more, _ := s.index.closure(names, u.needs)
	return slices.DeleteFunc(more, func(name string) bool { return slices.Contains(u.order, name) })
}

// confirm boots a unit that seems to hang, or to keep the processor, or whose script
// does, again, until two boots agree: a busy machine may look like it.
func (s *session) confirm(ctx context.Context, u *loading, r *Report) (*Report, error) {
	seen := []*Report{r}
	for len(seen) < maxTries && timed(seen[len(seen)-1]) {
		run, c, err := s.boot(ctx, []*loading{u})
		if err != nil {
			return nil, err
		}
		next := judge(u, &run.units[0], c)
		for _, old := range seen {
			if old.Verdict == next.Verdict {
				return next, nil
			}
		}
		seen = append(seen, next)
	}
	return seen[len(seen)-1], nil
}

// timed says whether time has decided a verdict.
func timed(r *Report) bool {
	return r.Verdict == Hung || r.Script.killed() || slices.ContainsFunc(r.Modules, func(m ModuleReport) bool { return m.Reason == "lockup" || m.Reason == "reset" })
}

// boot boots the kernel with units, or with none, again where it does not come up.
// The crash is nil where all that was begun has ended.
func (s *session) boot(ctx context.Context, units []*loading) (*bootRun, *crash, error) {
	g := guest{machine: machines[s.Arch], initramfs: s.initramfsFile(), kernel: s.kernelFile(),
		idle: cmp.Or(s.Timeout, DefaultTimeout), append: s.Options}
	p := planOf(units, g.idle)
	tag := tagOf(p, units)
	size, err := s.writeInitramfs(ctx, g, units, p.text(g.port, tag))
	if err != nil {
		return nil, nil, err
	}
	g.memory = cmp.Or(s.Memory, DefaultMemory) + max(0, 3*(size-smallInitramfs))
	if u := s.uefi(); u != nil {
		g.code, g.variables = s.codeFile(), s.variablesFile()
		g.memory += u.memory
	}
	var last error
	for range maxStarts {
		if err := s.writeVariables(); err != nil {
			return nil, nil, err
		}
		if g.accel, g.first = s.accel(); g.code != "" {
			g.first *= 2
		}
		g.whole = g.first + maxSteps*g.idle
		run := newRun(p, tag)
		begun := time.Now()
		out, err := g.run(ctx, run.line)
		s.count(g.accel, out.cpu, time.Since(begun))
		switch {
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		case len(run.units) > 1 && err == nil && out.ending == late: // each was in time until then
			run.units = run.units[:len(run.units)-1]
			return run, nil, nil
		case (len(run.units) > 0 || run.bye) && err == nil:
			return run, run.crash(out), nil
		case g.accel == KVM && s.Accel != KVM:
			s.withoutKVM(out, err)
		}
		last = fmt.Errorf("kernel %s does not boot in %s (%s): %w", s.Release, g.qemu, g.accel, startError(out, err))
		s.log().Debug("boot", "error", last)
	}
	return nil, nil, last
}

func startError(out outcome, err error) error {
	if err != nil {
		return err
	}
	what := "it ended"
	if out.ending == silent {
		what = "it is silent"
	}
	lines := messages(out.console)
	return fmt.Errorf("%s before its first module; console: %s", what, strings.Join(lines[max(0, len(lines)-5):], " | "))
}

// smallInitramfs is how many bytes of an initramfs any guest has memory for. It
// is there twice while it is unpacked, then once; the kernel reads a module into
// memory, and loads it into more.
const smallInitramfs = 32 << 20

// writeInitramfs writes what the kernel unpacks, and gives its size in bytes.
func (s *session) writeInitramfs(ctx context.Context, g guest, units []*loading, plan []byte) (size int64, err error) {
	var names []string
	for _, u := range units {
		names = append(names, u.own...)
	}
	slices.Sort(names)
	own, err := s.library.modules(ctx, s.prepared, slices.Compact(names))
	if err != nil {
		return 0, err
	}
	busybox, err := s.Store.Get(s.busybox.Digest, maxBusybox)
	if err != nil {
		return 0, err
	}
	f, err := os.Create(g.initramfs)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(initramfs(w, busybox, plan, units, own), w.Flush()); err != nil {
		return 0, err
	}
	return f.Seek(0, io.SeekCurrent)
}

// writeVariables writes the firmware's variables anew, as a boot changes them.
func (s *session) writeVariables() error {
	if s.uefi() == nil {
		return nil
	}
	data, err := s.Store.Get(s.vars.Digest, efivars.MaxSize)
	if err == nil && s.Trust != nil {
		data, err = efivars.Trust(data, s.Trust)
	}
	if err != nil {
		return fmt.Errorf("variables of the firmware in %v: %w", s.Kernel.Packages, err)
	}
	return os.WriteFile(s.variablesFile(), data, 0o600)
}

// copyBlob copies a verified blob to a file: qemu would not notice a damaged one.
func copyBlob(s *store.Store, d v1.Descriptor, name string) (err error) {
	r, err := s.Open(d.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, r)
	return err
}

// accel chooses how to run, and how long the kernel may take to come up.
func (s *session) accel() (Acceleration, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Accel == KVM || s.Accel != TCG && !s.noKVM && machines[s.Arch].native() && kvmUsable() {
		return KVM, firstKVM
	}
	return TCG, firstTCG
}

func kvmUsable() bool {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// withoutKVM gives KVM up: it can be there and not run these kernels.
func (s *session) withoutKVM(out outcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.noKVM {
		s.log().Info("KVM does not boot this kernel, so kernels are emulated", "reason", startError(out, err))
	}
	s.noKVM = true
}

func (t *Tester) log() *slog.Logger {
	if t.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return t.Log
}

func (t *Tester) count(a Acceleration, cpu, wall time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.Boots++
	t.stats.CPU += cpu
	t.stats.Wall += wall
	if a == KVM {
		t.stats.KVM++
	}
}
