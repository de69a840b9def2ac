package rebuild

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kofarm/kofarm/worker"
)

// Variation is something that a build can see inside its container, and should
// not depend on.
type Variation string

// The variations.
const (
	Clock Variation = "clock" // it is more than a year later
	Order Variation = "order" // folders are listed the other way round
	Host  Variation = "host"  // the host name
	User  Variation = "user"  // the user's and group's numbers, name and home
	CPUs  Variation = "cpus"  // the number of processors
	Jobs  Variation = "jobs"  // make -j
)

// Variations lists them all.
func Variations() []Variation { return []Variation{Clock, Order, Host, User, CPUs, Jobs} }

// What a build sees instead. The names are such that nothing else has them.
const (
	clockShift = 398*24*time.Hour + 13*time.Hour + 17*time.Minute + 5*time.Second
	otherHost  = "kofarm-verify-host"
	otherUser  = "kofarm-verify-user"
	otherUID   = 4711
	otherHome  = "/var/tmp"
)

// source is a library in C that shows the variations to programs.
//
//go:embed preload/vary.c
var source string

// Runner shows variations to every task that another runner runs: it puts one
// more layer on the task's image, and changes its environment and arguments.
// The zero value of all fields but Next changes nothing.
type Runner struct {
	Next worker.Runner
	Vary []Variation
	// Frozen is the time in seconds since 1970 at which the clock stands; 0: it
	// runs. It needs Clock.
	Frozen int64
	// Jobs is make's -j, where Jobs is varied.
	Jobs int

	mu     sync.Mutex
	layers map[string]func() (v1.Layer, error) // by what the image's lowest layer is
}

var _ worker.Runner = (*Runner)(nil)

func (r *Runner) varies(v Variation) bool { return slices.Contains(r.Vary, v) }

// Run implements [worker.Runner].
func (r *Runner) Run(ctx context.Context, task worker.Task) (worker.Result, error) {
	layer, err := r.layer(ctx, task)
	if err != nil {
		return worker.Result{}, fmt.Errorf("%s: preparing the variations: %w", task.Name, err)
	}
	if layer != nil {
		if task.Image, err = mutate.AppendLayers(task.Image, layer); err != nil {
			return worker.Result{}, fmt.Errorf("%s: preparing the variations: %w", task.Name, err)
		}
	}
	if r.varies(User) {
		task.Env = slices.Clone(task.Env)
		for i, e := range task.Env {
			if strings.HasPrefix(e, "HOME=") {
				task.Env[i] = "HOME=" + otherHome
			}
		}
	}
	if r.varies(Jobs) {
		task.Args = worker.WithJobs(task.Args, r.Jobs)
	}
	return r.Next.Run(ctx, task)
}

// defines are the -D of the source; none where it is not needed.
func (r *Runner) defines() []string {
	var d []string
	if r.varies(Clock) {
		d = append(d, fmt.Sprintf("-DCLOCK=%d", int64(clockShift/time.Second)))
		if r.Frozen != 0 {
			d = append(d, fmt.Sprintf("-DFREEZE=%d", r.Frozen))
		}
	}
	for _, v := range []struct {
		Variation
		define string
	}{{Order, "-DORDER"}, {Host, `-DHOST="` + otherHost + `"`}, {User, fmt.Sprintf("-DUID=%d", otherUID)}, {CPUs, "-DCPUS"}} {
		if r.varies(v.Variation) {
			d = append(d, v.define)
		}
	}
	return d
}

// layer gives the layer to put on a task's image, nil for none. Images with the
// same toolchain, their lowest layer, share one.
func (r *Runner) layer(ctx context.Context, task worker.Task) (v1.Layer, error) {
	defines := r.defines()
	if len(defines) == 0 {
		return nil, nil
	}
	below, err := task.Image.Layers()
	if err != nil || len(below) == 0 {
		return nil, errors.Join(err, errors.New("the image has no layers"))
	}
	toolchain, err := below[0].DiffID()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	if r.layers == nil {
		r.layers = map[string]func() (v1.Layer, error){}
	}
	make, ok := r.layers[toolchain.Hex]
	if !ok {
		make = sync.OnceValues(func() (v1.Layer, error) { return r.newLayer(ctx, task, defines) })
		r.layers[toolchain.Hex] = make
	}
	r.mu.Unlock()
	l, err := make()
	if err != nil {
		r.mu.Lock()
		delete(r.layers, toolchain.Hex) // a later try makes it anew
		r.mu.Unlock()
	}
	return l, err
}

// compile is run in the image: the source comes as an argument.
const compile = `source=$1; shift
cd /tmp && printf %s "$source" > vary.c && gcc -shared -fPIC -O1 "$@" vary.c -o vary.so -ldl && cat vary.so`

const (
	libraryPath = "usr/lib/kofarm/vary.so"
	maxLibrary  = 4 << 20
)

// newLayer compiles the library in the task's image, and makes a layer of it.
func (r *Runner) newLayer(ctx context.Context, task worker.Task, defines []string) (v1.Layer, error) {
	var library, log bytes.Buffer
	limits := task.Limits
	limits.Output, limits.Log = maxLibrary, maxLibrary
	res, err := r.Next.Run(ctx, worker.Task{Name: "variations for " + task.Name, Image: task.Image, Env: worker.Env(), Limits: limits,
		Args: append([]string{"/bin/bash", "-c", compile, "compile", source}, defines...), Output: &library, Log: &log})
	if err != nil {
		return nil, err
	}
	if res.Ending != worker.Exited || res.ExitCode != 0 || !bytes.HasPrefix(library.Bytes(), []byte("\x7fELF")) {
		return nil, fmt.Errorf("the image's gcc has ended by %s with status %d: %s", res.Ending, res.ExitCode, strings.TrimSpace(log.String()))
	}
	files := map[string]string{libraryPath: library.String(), "etc/ld.so.preload": "/" + libraryPath + "\n"}
	if r.varies(User) {
		files["etc/passwd"] = fmt.Sprintf("root:x:0:0:root:/root:/bin/bash\n%s:x:%d:%d::%s:/bin/bash\n", otherUser, otherUID, otherUID, otherHome)
		files["etc/group"] = fmt.Sprintf("root:x:0:\n%s:x:%d:\n", otherUser, otherUID)
	}
	return filesLayer(files)
}

// filesLayer makes a layer of files.
func filesLayer(files map[string]string) (v1.Layer, error) {
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(315532800, 0)} // as in all layers
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
}
