package docker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/workertest"
)

func openHere(t testing.TB) *Runner {
	t.Helper()
	r, err := Open(t.Context(), Config{Host: "unix:///run/kofarm-test/docker.sock", Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("%v\n(run `ci/setup daemons` as root)", err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return r
}

// noise is a layer of a file that does not compress, unlike any other.
func noise(t testing.TB, name string, size int) v1.Layer {
	data := make([]byte, size)
	copy(data, t.TempDir())
	x := uint64(len(name)*7919 + size)
	for i := 256; i < size; i++ {
		x = x*6364136223846793005 + 1442695040888963407
		data[i] = byte(x >> 56)
	}
	return workertest.Layer(t, workertest.Entry{Name: name, Data: string(data)})
}

func size(t testing.TB, layers ...v1.Layer) (n int64) {
	t.Helper()
	for _, l := range layers {
		s, err := l.Size()
		if err != nil {
			t.Fatal(err)
		}
		n += s
	}
	return n
}

func runs(t testing.TB, r *Runner, img v1.Image, script, want string) {
	t.Helper()
	var out bytes.Buffer
	res, err := r.Run(t.Context(), worker.Task{Name: "transfer", Image: img, Args: []string{"/bin/sh", "-c", script}, Output: &out,
		Env: []string{"HOME=/root", "PATH=/bin"}})
	if err != nil || res.ExitCode != 0 || out.String() != want {
		t.Errorf("exit status %d, output %q, error %v", res.ExitCode, out.String(), err)
	}
}

// TestLayersTravelOnce runs on a toolchain and two kernels, each with two
// modules, and counts the bytes.
func TestLayersTravelOnce(t *testing.T) {
	r := openHere(t)
	toolchain, kernels := noise(t, "gcc", 3<<20), []v1.Layer{noise(t, "k0", 1<<20), noise(t, "k1", 1<<20)}
	base, err := workertest.Image(t).Layers()
	if err != nil {
		t.Fatal(err)
	}
	below := size(t, base...)
	const small = 64 << 10 // manifests, configurations, sources
	for i, want := range []int64{size(t, toolchain, kernels[0]), 0, size(t, kernels[1]), 0} {
		source := noise(t, "source", 300+i)
		before := r.registry.bytes.Load()
		runs(t, r, workertest.Image(t, toolchain, kernels[i/2], source), "ls -d /gcc /k* /source", []string{"/gcc\n/k0\n/source\n", "/gcc\n/k1\n/source\n"}[i/2])
		got := r.registry.bytes.Load() - before
		if i > 0 {
			below = 0 // and it may have been there before
		}
		if got < want || got > want+below+small {
			t.Errorf("cell %d: %d bytes, want %d to %d", i, got, want, want+below+small)
		}
	}
}

// TestSend is about a daemon that does not reach the registry.
func TestSend(t *testing.T) {
	r := openHere(t)
	if err := r.registry.close(); err != nil {
		t.Fatal(err)
	}
	toolchain, layer := noise(t, "gcc", 3<<20), noise(t, "x", 1000)
	runs(t, r, workertest.Image(t, toolchain, layer, layer), "wc -c < /x", "1000\n")
	if !r.sends.Load() {
		t.Error("it was pulled")
	}
	before, other := r.Moved(), noise(t, "y", 1<<20)
	runs(t, r, workertest.Image(t, toolchain, other), "wc -c < /y", "1048576\n")
	if got, want := r.Moved()-before, size(t, other); got < want || got > want+100<<10 {
		t.Errorf("a second image: %d bytes, want hardly more than the %d of its own layer", got, want)
	}
	damaged := errors.New("damaged")
	_, err := r.Run(t.Context(), worker.Task{Name: "damaged", Image: workertest.Image(t, failing{noise(t, "y", 1000), damaged}), Args: []string{"/bin/sh"}})
	if !errors.Is(err, damaged) {
		t.Errorf("got error %v, want the layer's", err)
	}
}

// failing is a layer that cannot be read.
type failing struct {
	v1.Layer
	err error
}

func (f failing) Compressed() (io.ReadCloser, error) {
	rc, err := f.Layer.Compressed()
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(rc, 100), broken{f.err}), rc}, nil
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// TestDamagedLayer finds out at once, not by the daemon's patience.
func TestDamagedLayer(t *testing.T) {
	r := openHere(t)
	damaged := errors.New("damaged")
	_, err := r.Run(t.Context(), worker.Task{Name: "damaged", Image: workertest.Image(t, failing{noise(t, "y", 1000), damaged}), Args: []string{"/bin/sh"}})
	if !errors.Is(err, damaged) || !strings.Contains(err.Error(), "sha256:") {
		t.Errorf("got error %v, want the layer's, and its digest", err)
	}
}

// TestRegistryRefuses asks for what is not offered, and by other methods.
func TestRegistryRefuses(t *testing.T) {
	r, err := newRegistry("secret")
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	img, err := newImage(workertest.Image(t))
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + r.listener.Addr().String() + "/v2/"
	status := func(method, path string) int {
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	_, done := r.offer(img, func(error) {})
	manifest := "manifests/" + img.manifest.String()
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "", 200},
		{"GET", "secret/" + manifest, 200},
		{"HEAD", "secret/" + manifest, 200},
		{"GET", "guess/" + manifest, 404},
		{"GET", "secret/manifests/latest", 404},
		{"GET", "secret/blobs/" + strings.Repeat("0", 64), 404},
		{"GET", "_catalog", 404},
		{"GET", "secret/tags/list", 404},
		{"PUT", "secret/" + manifest, 405},
		{"DELETE", "secret/" + manifest, 405},
		{"POST", "secret/blobs/uploads/", 404},
	} {
		if got := status(tt.method, tt.path); got != tt.want {
			t.Errorf("%s %s: status %d, want %d", tt.method, tt.path, got, tt.want)
		}
	}
	done()
	if got := status("GET", "secret/"+manifest); got != 404 {
		t.Errorf("after the pull: status %d, want 404", got)
	}
}

func TestLastUse(t *testing.T) {
	for _, tt := range []struct {
		tags []string
		want string
	}{
		{nil, ""},
		{[]string{"other:x-20990101"}, ""},
		{[]string{"kofarm:0123-20260101"}, "20260101"},
		{[]string{"kofarm:0123-20260102", "kofarm:0123-20260101"}, "20260102"},
	} {
		if got := lastUse(tt.tags); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.tags, got, tt.want)
		}
	}
}

// TestPeak follows the memory use of a task from outside, and as a daemon on
// another machine tells it.
func TestPeak(t *testing.T) {
	r := openHere(t)
	sampled := make(chan int64, 1)
	go func() {
		for t.Context().Err() == nil {
			list, err := r.client.ContainerList(t.Context(), container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", worker.RunLabel+"="+r.claim.Run))})
			if err == nil && len(list) == 1 {
				sampled <- r.samplePeak(t.Context(), list[0].ID)
				return
			}
		}
	}()
	const used = 40 << 20
	res, err := r.Run(t.Context(), worker.Task{Name: "peak", Image: workertest.Image(t), Env: []string{"HOME=/root", "PATH=/bin"},
		Args:   []string{"/bin/sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=40; sleep 4; rm /tmp/x; sleep 0.2"},
		Limits: worker.Limits{Memory: 1 << 30, Disk: 64 << 20}})
	if err != nil || res.ExitCode != 0 {
		t.Fatal(res, err)
	}
	if res.MemoryPeak < used || res.MemoryPeak > 1<<30 {
		t.Errorf("a peak of %d bytes", res.MemoryPeak)
	}
	if got := <-sampled; got < used || got > 1<<30 {
		t.Errorf("a sampled peak of %d bytes", got)
	}
}
