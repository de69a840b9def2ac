package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/containerd"
	"github.com/kofarm/kofarm/worker/docker"
	"github.com/kofarm/kofarm/worker/embedded"
)

func TestMain(m *testing.M) {
	embedded.Reexec()
	os.Exit(m.Run())
}

// backendsFarm has one small module on the two newest kernels of a series.
const backendsFarm = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 2, of: "6.1.*"}]
    flavors: [cloud-amd64]
`

// daemons are those that `ci/setup daemons` starts.
const (
	dockerHost       = "unix:///run/kofarm-test/docker.sock"
	containerdSocket = "/run/kofarm-test/containerd.sock"
)

// cellTasks makes the tasks of backendsFarm's cells, without limits of time.
func cellTasks(b *testing.B) []worker.Task {
	b.Helper()
	f, _, err := matrix.Parse("farm.yaml", []byte(backendsFarm))
	if err != nil {
		b.Fatal(err)
	}
	s, err := store.Open(rig.Store(b))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	client := &fetch.Client{Dir: s.BlobDir(), Kept: s.CacheDir("releases"), Partial: s.PartialDir(), Stall: time.Minute, Log: slog.New(slog.DiscardHandler), Use: s.Use}
	p := &farm.Preparer{Fetch: client, Apt: &apt.Client{Fetch: client, Dir: s.CacheDir("indexes")},
		Program: images.Program{Path: worker.RecipePath, Data: worker.Recipe}, Now: time.Now(), Dir: b.TempDir()}
	plan, err := p.Prepare(b.Context(), f)
	if err != nil {
		b.Fatal(err)
	}
	assembler := &images.Assembler{Store: s, Fetcher: farm.Packages{Client: client}}
	var tasks []worker.Task
	for _, c := range plan.Cells {
		img, err := assembler.Image(b.Context(), c.Inputs)
		if err != nil {
			b.Fatal(err)
		}
		build := worker.Build{Module: c.Module.Name, Version: c.Module.Version, Kernel: c.Kernel.Release, Arch: c.Kernel.Arch, Jobs: 2}
		tasks = append(tasks, worker.Task{Name: c.Name(), Image: img, Args: build.Command(), Env: worker.Env(),
			Limits: worker.Limits{Memory: 4 << 30, Processes: 1024, Disk: 4 << 30, Output: 1 << 30, Log: 64 << 20}})
	}
	return tasks
}

// trivial is a task in the same image that does nothing.
func trivial(task worker.Task) worker.Task {
	task.Args = []string{"/bin/true"}
	return task
}

// timed runs a task and gives how long that took.
func timed(b *testing.B, r worker.Runner, task worker.Task) time.Duration {
	b.Helper()
	var log bytes.Buffer
	task.Output, task.Log = io.Discard, &log
	begun := time.Now()
	res, err := r.Run(b.Context(), task)
	if err != nil || res.Ending != worker.Exited || res.ExitCode != 0 {
		b.Fatalf("%+v, %v\n%s", res, err, log.String())
	}
	return time.Since(begun)
}

// dockerRun runs a task by the docker command, with what a task has in limits
// and file systems.
func dockerRun(b *testing.B, image string, task worker.Task) time.Duration {
	b.Helper()
	args := []string{"--host", dockerHost, "run", "--rm", "--network", "none", "--read-only"}
	for _, dir := range worker.Scratch() {
		args = append(args, "--tmpfs", dir+":exec")
	}
	for _, e := range task.Env {
		args = append(args, "--env", e)
	}
	args = append(append(args, "--entrypoint", task.Args[0], image), task.Args[1:]...)
	cmd := exec.Command("docker", args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	begun := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatalf("docker run: %v\n%s", err, log.String())
	}
	return time.Since(begun)
}

// dockerImage names an image that Docker has of a task's layers.
func dockerImage(b *testing.B, img v1.Image) string {
	b.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		b.Fatal(err)
	}
	var want []string
	for _, id := range config.RootFS.DiffIDs {
		want = append(want, id.String())
	}
	docker := func(args ...string) string {
		out, err := exec.Command("docker", append([]string{"--host", dockerHost}, args...)...).Output()
		if err != nil {
			b.Fatal(err)
		}
		return string(out)
	}
	for id := range strings.FieldsSeq(docker("images", "--quiet", "--no-trunc", "--filter", "label=dev.kofarm.image")) {
		if strings.TrimSpace(docker("inspect", "--format", "{{join .RootFS.Layers \" \"}}", id)) == strings.Join(want, " ") {
			return id
		}
	}
	b.Fatal("Docker has no such image")
	return ""
}

// median gives the middle of some durations.
func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// BenchmarkBackends compares the backends with each other and with docker run, by
// a task that does nothing and by a small module. All take turns.
func BenchmarkBackends(b *testing.B) {
	quiet := slog.New(slog.DiscardHandler)
	e, err := embedded.Open(filepath.Join(rig.Store(b), "run"), quiet)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	d, err := docker.Open(b.Context(), docker.Config{Host: dockerHost, Dir: rig.Cache(b, "bench", "docker"), Log: quiet})
	if err != nil {
		b.Fatalf("%v\n(run `ci/setup daemons` as root)", err)
	}
	b.Cleanup(func() { d.Close(context.WithoutCancel(b.Context())) })
	c, err := containerd.Open(b.Context(), containerd.Config{Address: containerdSocket, Dir: rig.Cache(b, "bench", "containerd"), Log: quiet})
	if err != nil {
		b.Fatalf("%v\n(run `ci/setup daemons` as root)", err)
	}
	b.Cleanup(func() { c.Close(context.WithoutCancel(b.Context())) })
	tasks := cellTasks(b)
	timed(b, d, trivial(tasks[0])) // brings the image
	image := dockerImage(b, tasks[0].Image)
	runs := []struct {
		name string
		run  func(worker.Task) time.Duration
	}{
		{"embedded", func(t worker.Task) time.Duration { return timed(b, e, t) }},
		{"docker", func(t worker.Task) time.Duration { return timed(b, d, t) }},
		{"containerd", func(t worker.Task) time.Duration { return timed(b, c, t) }},
		{"docker run", func(t worker.Task) time.Duration { return dockerRun(b, image, t) }},
	}
	for _, r := range runs {
		r.run(trivial(tasks[0])) // brings the layers
	}
	for b.Loop() {
		for _, kind := range []struct {
			name   string
			task   worker.Task
			rounds int
		}{{"trivial cell", trivial(tasks[0]), 15}, {"small module", tasks[0], 5}} {
			took := map[string][]time.Duration{}
			for range kind.rounds {
				for _, r := range runs {
					took[r.name] = append(took[r.name], r.run(kind.task))
				}
			}
			base := median(took["docker run"])
			for _, r := range runs {
				m := median(took[r.name])
				b.Logf("%s: %-10s %4d ms, %.2f of docker run", kind.name, r.name, m.Milliseconds(), ratio(m, base))
				b.ReportMetric(float64(m.Milliseconds()), fmt.Sprintf("%s-%s-ms", strings.ReplaceAll(r.name, " ", "-"), strings.Fields(kind.name)[0]))
			}
		}
	}
}

// BenchmarkSecondKernel counts the bytes that go to a Docker daemon that has
// nothing, for the images of a module on two kernels.
func BenchmarkSecondKernel(b *testing.B) {
	tasks := cellTasks(b)
	for b.Loop() {
		r := freshDocker(b)
		var took []time.Duration
		var moved []int64
		for _, t := range tasks[:2] {
			before := r.Moved()
			took = append(took, timed(b, r, trivial(t)))
			moved = append(moved, r.Moved()-before)
		}
		b.Logf("first kernel: %.1f MB in %.1f s; second: %.1f MB in %.1f s", float64(moved[0])/1e6, took[0].Seconds(), float64(moved[1])/1e6, took[1].Seconds())
		b.ReportMetric(float64(moved[0])/1e6, "first-MB")
		b.ReportMetric(float64(moved[1])/1e6, "second-MB")
	}
}

// freshDocker starts a Docker daemon that has nothing.
func freshDocker(b *testing.B) *docker.Runner {
	b.Helper()
	dir, err := os.MkdirTemp("", "kofarm-bench-") // short, for its sockets
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	host := "unix://" + dir + "/sock"
	cmd := exec.Command("dockerd", "--host", host, "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid",
		"--bridge", "none", "--iptables=false", "--ip-forward=false")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	for until := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		r, err := docker.Open(b.Context(), docker.Config{Host: host, Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			b.Cleanup(func() { r.Close(context.WithoutCancel(b.Context())) })
			return r
		}
		if time.Now().After(until) {
			b.Fatal(err)
		}
	}
}
