package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/worker/containerd"
	"github.com/kofarm/kofarm/worker/docker"
	"github.com/kofarm/kofarm/worker/embedded"
	"github.com/kofarm/kofarm/worker/trial"
)

// status is a check's verdict.
type status string

const (
	good    status = "ok"
	warning status = "warning" // something works less well, or may fail
	missing status = "missing" // something does not work
	absent  status = "absent"  // something is not there, and need not be
)

// check is one thing that doctor has looked at.
type check struct {
	Name   string `json:"name"`
	Status status `json:"status"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitzero"` // what to do about it
}

// diagnosis is what `doctor --json` prints.
type diagnosis struct {
	Version  int      `json:"version"`  // 1
	Runtimes []string `json:"runtimes"` // that work, for this user
	Checks   []check  `json:"checks"`
}

// ordinaryUser names the check of what others than root can do.
const ordinaryUser = "embedded, ordinary user"

// triedTime bounds one runtime's trial.
const triedTime = 90 * time.Second

func (a *app) doctorCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use:   "doctor [farm.yaml]",
		Short: "Say what this host can run, and how to mend what is missing",
		Long: `doctor runs a container on each runtime and looks at what builds need: the
kernel, cgroups, disk, memory, qemu for tests, and with a farm file (farm.yaml where there is
one) its keyrings, mirrors and shared cache. Exit status: 0 where at least one
runtime works, else 3.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			only := flags.name
			if only != "" && (only == matrix.Auto || !slices.Contains(matrix.Runtimes(), only)) {
				return fmt.Errorf("--runtime %s: want one of embedded, docker, containerd", only)
			}
			f, err := doctorFarm(args)
			if err != nil {
				return err
			}
			flags.name = cmp.Or(only, matrix.Auto) // all are tried
			rt, err := flags.runtime(cmp.Or(f, &matrix.Farm{}))
			if err != nil {
				return err
			}
			return a.doctor(cmd.Context(), f, only, rt)
		},
	}
	flags.add(cmd, "try only this `runtime`, and look at nothing else")
	return cmd
}

// doctorFarm reads the farm file. Where none is named there need not be one.
func doctorFarm(args []string) (*matrix.Farm, error) {
	name := farmArg(args)
	data, err := os.ReadFile(name)
	if len(args) == 0 && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the farm file: %w", err)
	}
	f, _, err := matrix.Parse(name, data)
	return f, err
}

func (a *app) doctor(ctx context.Context, f *matrix.Farm, only string, rt runtime) error {
	d := diagnosis{Version: 1, Runtimes: []string{}}
	dir, storeCheck, done := a.doctorStore()
	defer done()
	rt.store = dir
	for _, name := range []string{matrix.Embedded, matrix.Docker, matrix.Containerd} {
		if only != "" && only != name {
			continue
		}
		works := func(c check) bool { return c.Status == good || c.Status == warning }
		checks := a.tryRuntime(ctx, name, rt)
		if slices.ContainsFunc(checks, works) {
			d.Runtimes = append(d.Runtimes, name)
		}
		d.Checks = append(d.Checks, checks...)
		if name == matrix.Embedded && only == "" && os.Geteuid() == 0 {
			d.Checks = append(d.Checks, a.tryOrdinaryUser(ctx))
		}
	}
	if only == "" {
		d.Checks = append(d.Checks, hostChecks(os.DirFS("/"), os.Geteuid() == 0)...)
		d.Checks = append(d.Checks, bootChecks(boot.Hosts(ctx), f != nil && f.Test != nil)...)
		d.Checks = append(d.Checks, storeCheck)
		d.Checks = append(d.Checks, a.farmChecks(ctx, f)...)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := a.printDiagnosis(d); err != nil {
		return err
	}
	if len(d.Runtimes) == 0 {
		return &exitError{code: exitInfrastructure}
	}
	return nil
}

func (a *app) printDiagnosis(d diagnosis) error {
	if a.json {
		enc := json.NewEncoder(a.stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", " ")
		return enc.Encode(d)
	}
	if a.quiet {
		return nil
	}
	var b strings.Builder
	for _, c := range d.Checks {
		fmt.Fprintf(&b, "%-8s %-24s %s\n", c.Status, c.Name, strings.ReplaceAll(c.Detail, "\n", "\n"+strings.Repeat(" ", 34)))
		if c.Remedy != "" {
			fmt.Fprintf(&b, "%-8s %-24s → %s\n", "", "", c.Remedy)
		}
	}
	if len(d.Runtimes) == 0 {
		b.WriteString("This host cannot run builds as it is.\n")
	} else {
		fmt.Fprintf(&b, "This host can run builds on: %s.\n", strings.Join(d.Runtimes, ", "))
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

// doctorStore looks at the store, and gives a folder to try runtimes in: the
// store, as the layers of builds are there, or a temporary one where that does
// not work.
func (a *app) doctorStore() (dir string, c check, done func()) {
	c = check{Name: "store", Status: good}
	s, err := a.openStore()
	if err == nil {
		c.Detail, c.Status, c.Remedy = diskSpace(s.Dir())
		return s.Dir(), c, func() { s.Close() }
	}
	c.Status, c.Detail = missing, err.Error()
	c.Remedy = "choose a folder that you may write to: --store DIR, or KOFARM_STORE"
	if dir, err = os.MkdirTemp("", "kofarm-doctor-"); err != nil {
		return os.TempDir(), c, func() {}
	}
	return dir, c, func() { os.RemoveAll(dir) }
}

// tryRuntime runs a container on each daemon of a runtime.
func (a *app) tryRuntime(ctx context.Context, name string, rt runtime) []check {
	var checks []check
	for _, d := range rt.of(name) {
		one := rt
		one.name, one.daemons = name, map[string][]matrix.Daemon{name: {d}}
		c := a.tryDaemon(ctx, one, d.Address)
		c.Name = strings.TrimSpace(name + " " + d.Address)
		checks = append(checks, c)
	}
	return checks
}

// tryDaemon runs a container.
func (a *app) tryDaemon(ctx context.Context, rt runtime, address string) check {
	ctx, cancel := context.WithTimeout(ctx, triedTime)
	defer cancel()
	if c, ok := noSocket(rt.name, address); !ok {
		return c
	}
	c := check{Status: good}
	r, err := a.openRunner(ctx, rt)
	if err == nil {
		begun := time.Now()
		err = trial.Run(ctx, r)
		c.Detail = fmt.Sprintf("has run a container in %d ms", time.Since(begun).Milliseconds())
		if len(r.cores) == 1 {
			c.Detail += fmt.Sprintf("; %d builds at a time", r.cores[0])
		}
		if e, ok := r.Runner.(*embedded.Runner); ok && !e.Limited() {
			c.Status = warning
			c.Detail += "; without a cgroup: each process's memory is limited, not a build's"
			c.Remedy = "run kofarm as root where a build's memory has to be limited as a whole"
		}
		err = errors.Join(err, r.close(ctx))
	}
	if err != nil {
		return check{Status: missing, Detail: err.Error(), Remedy: remedies[rt.name]}
	}
	return c
}

// remedies say what to look at where a runtime is there and does not work.
var remedies = map[string]string{
	matrix.Embedded:   "see the checks of user namespaces, overlayfs and cgroups below; in a container it has to be a privileged one",
	matrix.Docker:     "see that `docker run --rm hello-world` works for this user",
	matrix.Containerd: "see that `ctr version` works for this user: it is root's unless configured otherwise",
}

// noSocket finds out why a daemon need not be asked. It is fine where there is
// none: the embedded runtime needs no daemon.
func noSocket(name, address string) (c check, ok bool) {
	variable := "CONTAINERD_ADDRESS"
	path := containerd.Config{Address: address}.Socket()
	switch name {
	case matrix.Embedded:
		return c, true
	case matrix.Docker:
		variable = "DOCKER_HOST"
		host, err := docker.Config{Host: address}.Address()
		if err != nil {
			return check{Status: missing, Detail: err.Error(), Remedy: remedies[name]}, false
		}
		path = strings.TrimPrefix(host, "unix://")
	}
	if !filepath.IsAbs(path) {
		return c, true // tcp:// and the like
	}
	c = check{Status: missing}
	switch err := unix.Access(path, unix.R_OK|unix.W_OK); {
	case err == nil:
		return c, true
	case errors.Is(err, fs.ErrNotExist):
		c.Status, c.Detail = absent, "there is no socket "+path
		c.Remedy = "none is needed; to use it, start the daemon, or set " + variable
		if address != "" { // the farm file or a flag asks for it
			c.Status, c.Remedy = missing, "start the daemon, or take the address out of the farm file's build."+name
		}
	default:
		c.Detail = fmt.Sprintf("socket %s: %v", path, err)
		c.Remedy = "run as root, or as a member of the socket's group"
	}
	return c, false
}

// nobody is the user that root tries to be.
const nobody = 65534

// tryOrdinaryUser has root find out what others can do: kofarm runs itself as
// one of them.
func (a *app) tryOrdinaryUser(ctx context.Context) check {
	c, err := asOrdinaryUser(ctx)
	if err != nil {
		c = check{Status: missing, Detail: err.Error()}
	}
	c.Name = ordinaryUser
	if c.Status == missing {
		c.Status = warning // this user is root
		c.Remedy = "see the checks of user namespaces and overlayfs below, or run builds as root"
	}
	return c
}

func asOrdinaryUser(ctx context.Context) (c check, err error) {
	ctx, cancel := context.WithTimeout(ctx, triedTime)
	defer cancel()
	dir, err := os.MkdirTemp("/tmp", "kofarm-doctor-") // root's $TMPDIR may be closed to others
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chown(dir, nobody, nobody); err != nil {
		return c, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "--json", "--quiet", "--store", filepath.Join(dir, "store"), "doctor", "--runtime", matrix.Embedded)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	rerr := cmd.Run() // its status says no more than its output
	var d diagnosis
	if err := json.Unmarshal(stdout.Bytes(), &d); err != nil || len(d.Checks) != 1 {
		return c, fmt.Errorf("as user %d: %w %s", nobody, errors.Join(rerr, err), strings.TrimSpace(stderr.String()))
	}
	return d.Checks[0], nil
}
