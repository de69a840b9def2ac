package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/containerd"
	"github.com/kofarm/kofarm/worker/docker"
	"github.com/kofarm/kofarm/worker/embedded"
)

// runner is a runner of any backend, and how to release it.
type runner struct {
	worker.Runner
	close func(context.Context) error
}

// openRunner opens a runtime by its name. "auto" takes the first that answers,
// of Docker, containerd and the embedded one, and says which.
func (a *app) openRunner(ctx context.Context, name, store string) (runner, error) {
	open := map[string]func(context.Context, string) (runner, error){
		matrix.Docker: a.openDocker, matrix.Containerd: a.openContainerd, matrix.Embedded: a.openEmbedded,
	}
	if name != matrix.Auto {
		r, err := open[name](ctx, store)
		if err != nil {
			err = infrastructure(fmt.Errorf("runtime %s: %w", name, err))
		}
		return r, err
	}
	var errs []error
	for _, name := range []string{matrix.Docker, matrix.Containerd, matrix.Embedded} {
		r, err := open[name](ctx, store)
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

func (a *app) openEmbedded(_ context.Context, store string) (runner, error) {
	r, err := embedded.Open(filepath.Join(store, "run"), a.log)
	if err != nil {
		return runner{}, err
	}
	return runner{r, func(context.Context) error { return r.Close() }}, nil
}

func (a *app) openDocker(ctx context.Context, store string) (runner, error) {
	r, err := docker.Open(ctx, docker.Config{Dir: filepath.Join(store, "run", "docker"), Log: a.log})
	if err != nil {
		return runner{}, err
	}
	return runner{r, r.Close}, nil
}

func (a *app) openContainerd(ctx context.Context, store string) (runner, error) {
	r, err := containerd.Open(ctx, containerd.Config{Dir: filepath.Join(store, "run", "containerd"), Log: a.log})
	if err != nil {
		return runner{}, err
	}
	return runner{r, r.Close}, nil
}

// runtimeName chooses between the flag and the farm file.
func runtimeName(flag string, f *matrix.Farm) (string, error) {
	switch {
	case flag == "" && f.Build.Runtime != "":
		return f.Build.Runtime, nil
	case flag == "":
		return matrix.Embedded, nil
	case !slices.Contains(matrix.Runtimes(), flag):
		return "", fmt.Errorf("--runtime %s is not known; there are: %s", flag, strings.Join(matrix.Runtimes(), ", "))
	}
	return flag, nil
}
