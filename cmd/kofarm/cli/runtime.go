package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/containerd"
	"github.com/kofarm/kofarm/worker/docker"
	"github.com/kofarm/kofarm/worker/embedded"
	"github.com/kofarm/kofarm/worker/fleet"
)

// runner is a runner of any backend, how to release it, and the cores of the
// machines that it runs tasks on, none for this one.
type runner struct {
	worker.Runner
	cores []int
	close func(context.Context) error
}

// runtime is what runs containers, and how to reach it.
type runtime struct {
	name    string                     // one of matrix.Runtimes
	daemons map[string][]matrix.Daemon // by runtime; none: the usual one

	store    string
	parallel int // tasks at a time; 0: one for each core
	say      func(line string)
}

// daemonFlags are the flags that say what runs containers.
type daemonFlags struct {
	name               string
	docker, containerd []string
}

func (f *daemonFlags) add(cmd *cobra.Command, usage string) {
	flags := cmd.Flags()
	flags.StringVar(&f.name, "runtime", "", usage)
	flags.StringArrayVar(&f.docker, "docker", nil, "`address` of a Docker daemon, unix:///path or tcp://host:port; again for several (default: the farm file's build.docker, else as for the docker command)")
	flags.StringArrayVar(&f.containerd, "containerd", nil, "`socket` of a containerd; again for several (default: the farm file's build.containerd, else CONTAINERD_ADDRESS)")
}

// runtime chooses between flags and the farm file. A flag that names daemons
// names the runtime, too.
func (f *daemonFlags) runtime(file *matrix.Farm) (runtime, error) {
	rt := runtime{name: file.Build.Runtime, daemons: map[string][]matrix.Daemon{
		matrix.Docker: located(file, file.Build.Docker), matrix.Containerd: file.Build.Containerd}}
	given := []string{}
	for _, kind := range []struct {
		name      string
		addresses []string
		check     func(string) error
	}{{matrix.Docker, f.docker, matrix.CheckDocker}, {matrix.Containerd, f.containerd, matrix.CheckContainerd}} {
		if len(kind.addresses) == 0 {
			continue
		}
		daemons, err := flagDaemons(kind.name, kind.addresses, kind.check)
		if err != nil {
			return rt, err
		}
		given, rt.daemons[kind.name] = append(given, kind.name), daemons
	}
	switch {
	case f.name != "" && !slices.Contains(matrix.Runtimes(), f.name):
		return rt, fmt.Errorf("--runtime %s is not known; there are: %s", f.name, strings.Join(matrix.Runtimes(), ", "))
	case f.name != "" && f.name != matrix.Auto && len(given) > 0 && !slices.Contains(given, f.name):
		return rt, fmt.Errorf("--%s names daemons that --runtime %s does not use", given[0], f.name)
	case f.name != "":
		rt.name = f.name
	case len(given) > 1:
		return rt, errors.New("--docker and --containerd both name daemons: add --runtime docker, containerd or auto")
	case len(given) == 1:
		rt.name = given[0]
	case rt.name == "":
		rt.name = matrix.Embedded
	}
	return rt, nil
}

func flagDaemons(name string, addresses []string, check func(string) error) ([]matrix.Daemon, error) {
	var list []matrix.Daemon
	for i, addr := range addresses {
		if err := check(addr); err != nil {
			return nil, fmt.Errorf("--%s %q: %w", name, addr, err)
		}
		if slices.Contains(addresses[:i], addr) {
			return nil, fmt.Errorf("--%s %q is given twice", name, addr)
		}
		list = append(list, matrix.Daemon{Address: addr})
	}
	return list, nil
}

// located resolves the paths of daemons' TLS files, which are relative to the
// farm file's folder.
func located(f *matrix.Farm, daemons []matrix.Daemon) []matrix.Daemon {
	daemons = slices.Clone(daemons)
	for i, d := range daemons {
		if d.TLS == nil {
			continue
		}
		tls := *d.TLS
		for _, p := range []*string{&tls.CA, &tls.Cert, &tls.Key} {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(filepath.Dir(f.File), *p)
			}
		}
		daemons[i].TLS = &tls
	}
	return daemons
}

// of gives the daemons of a runtime, at least one.
func (rt runtime) of(name string) []matrix.Daemon {
	if list := rt.daemons[name]; len(list) > 0 {
		return list
	}
	return []matrix.Daemon{{}}
}

// openRunner opens a runtime. "auto" takes the first that answers, of Docker,
// containerd and the embedded one, and says which.
func (a *app) openRunner(ctx context.Context, rt runtime) (runner, error) {
	if rt.name != matrix.Auto {
		r, err := a.openNamed(ctx, rt.name, rt)
		if err != nil {
			err = infrastructure(fmt.Errorf("runtime %s: %w", rt.name, err))
		}
		return r, err
	}
	var errs []error
	for _, name := range []string{matrix.Docker, matrix.Containerd, matrix.Embedded} {
		r, err := a.openNamed(ctx, name, rt)
		if err == nil {
			if !a.quiet {
				fmt.Fprintf(a.stderr, "kofarm: runtime: %s\n", name)
			}
			return r, nil
		}
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		errs = append(errs, fmt.Errorf("runtime %s: %w", name, err))
	}
	return runner{}, infrastructure(errors.Join(errs...))
}

func (a *app) openNamed(ctx context.Context, name string, rt runtime) (runner, error) {
	if name == matrix.Embedded {
		r, err := embedded.Open(filepath.Join(rt.store, "run"), a.log)
		if err != nil {
			return runner{}, err
		}
		return runner{Runner: r, close: func(context.Context) error { return r.Close() }}, nil
	}
	cfg := fleet.Config{Parallel: rt.parallel, Say: rt.say}
	for _, d := range rt.of(name) {
		m, err := a.member(name, d, rt.store)
		if err != nil {
			return runner{}, err
		}
		cfg.Members = append(cfg.Members, m)
	}
	f, err := fleet.Open(ctx, cfg)
	if err != nil {
		return runner{}, err
	}
	return runner{f, f.Cores(), f.Close}, nil
}

// member describes a daemon to a fleet.
func (a *app) member(runtime string, d matrix.Daemon, store string) (fleet.Member, error) {
	dir := filepath.Join(store, "run", runtime)
	if runtime == matrix.Containerd {
		cfg := containerd.Config{Address: d.Address, Dir: dir, Log: a.log}
		return fleet.Member{Name: runtime + " " + cfg.Socket(), Open: func(ctx context.Context) (fleet.Daemon, error) {
			return opened(containerd.Open(ctx, cfg))
		}}, nil
	}
	cfg := docker.Config{Host: d.Address, Dir: dir, Log: a.log}
	if d.TLS != nil {
		cfg.TLS = docker.TLS{Use: true, CA: d.TLS.CA, Cert: d.TLS.Cert, Key: d.TLS.Key}
	}
	address, err := cfg.Address()
	return fleet.Member{Name: runtime + " " + address, Open: func(ctx context.Context) (fleet.Daemon, error) {
		return opened(docker.Open(ctx, cfg))
	}}, err
}

// opened keeps a nil pointer from becoming a daemon.
func opened[D fleet.Daemon](d D, err error) (fleet.Daemon, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}
