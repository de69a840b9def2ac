// Package bench_test compares kofarm with what one would do by hand. It prints
// figures, and asserts none.
package bench_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/worker"
)

// benchFarm has 12 cells in one root: dkms is among the build packages, so that
// the same root serves all three.
const benchFarm = `
modules:
  - {source: {deb: acpi-call-dkms, suite: bookworm}, build-packages: [dkms]}
  - {source: {deb: bbswitch-dkms, suite: bookworm}, build-packages: [dkms]}
  - {source: {deb: v4l2loopback-dkms, suite: bookworm}, build-packages: [dkms]}
  - {source: {deb: dm-writeboost-dkms, suite: bookworm}, build-packages: [dkms]}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [amd64, cloud-amd64, rt-amd64]
exclude:
  - {module: v4l2loopback, flavor: cloud-amd64, reason: cloud kernels have no video devices}
`

// cost is what a run took.
type cost struct {
	wall, cpu time.Duration
	rss       int64 // bytes, of the process itself
}

func (c cost) String() string {
	return fmt.Sprintf("%6.2f s wall, %6.2f s CPU", c.wall.Seconds(), c.cpu.Seconds())
}

// measure runs a command, with its output in the error.
func measure(b *testing.B, cmd *exec.Cmd) cost {
	b.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	peak := make(chan int64)
	go func() {
		var most int64
		for {
			now, ok := residentPeak(cmd.Process.Pid)
			if !ok {
				peak <- most
				return
			}
			most = max(most, now)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	err := cmd.Wait()
	c := cost{wall: time.Since(begun), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), rss: <-peak}
	if err != nil {
		b.Fatalf("%q: %v\n%s", cmd.Args, err, out.String())
	}
	return c
}

// residentPeak is a process's VmHWM. What wait4 tells includes its children.
func residentPeak(pid int) (int64, bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			return kb << 10, err == nil
		}
	}
	return 0, false
}

const rounds = 3

// medians runs each in turn, some rounds, so that what else the machine does
// falls on all of them, and gives of each the run with the median wall clock.
func medians(runs ...func() cost) []cost {
	all := make([][]cost, len(runs))
	for range rounds {
		for i, run := range runs {
			all[i] = append(all[i], run())
		}
	}
	middle := make([]cost, len(runs))
	for i, costs := range all {
		slices.SortFunc(costs, func(a, b cost) int { return int(a.wall - b.wall) })
		middle[i] = costs[rounds/2]
	}
	return middle
}

// kofarm runs kofarm build on a store.
func kofarm(b *testing.B, dir, store string) cost {
	b.Helper()
	cmd := exec.Command(rig.Binary(b), "build")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "KOFARM_STORE="+store)
	return measure(b, cmd)
}

// forget removes the results and the packages from a store.
func forget(b *testing.B, dir, store string) {
	b.Helper()
	for _, p := range []string{filepath.Join(store, "refs/result"), filepath.Join(store, "refs/pack"), filepath.Join(dir, "dist")} {
		if err := os.RemoveAll(p); err != nil {
			b.Fatal(err)
		}
	}
}

// inRoot prepares a script in the root of all the cells' layers, in mount and
// process namespaces of its own, with the scratch file systems of a worker.
func inRoot(store, script string) *exec.Cmd {
	outer := `
		cd "$STORE/run/layers"
		mount -t tmpfs none "$ROOT"
		mkdir "$ROOT/root" "$ROOT/none"
		mount -t overlay overlay -o "ro,lowerdir=$(ls | tr '\n' :)$ROOT/none" "$ROOT/root"
		cd "$ROOT/root"
		mount -t proc proc proc
		mount --rbind /dev dev
		for d in ` + strings.Join(worker.Scratch(), " ") + `; do mount -t tmpfs none ".$d"; done
		exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 KBUILD_BUILD_TIMESTAMP=@0 CELLS="$CELLS" \
			chroot . /bin/bash -euc "$SCRIPT"`
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", outer)
	cmd.Env = append(os.Environ(), "SCRIPT="+script, "STORE="+store)
	return cmd
}

// plainMake builds the cells as many at a time, and with as many jobs, as kofarm,
// which has its last cell start beside them.
const plainMake = `
	build() {
		dir=/var/lib/dkms/$1/$2/$3
		mkdir -p "${dir%/*}"
		cp -a "/usr/src/$1-$2" "$dir"
		make -j2 -C "/lib/modules/$3/build" M="$dir" KERNELRELEASE="$3"
	}
	export -f build
	xargs -L 1 -P "$(nproc)" bash -c 'build "$@" 2 > /dev/null 2>&1' build <<< "$CELLS"`

// dkmsLoop builds the cells one after the other: dkms has one build folder for
// each module.
const dkmsLoop = `
	while read -r m v k; do
		dkms build "$m/$v" -k "$k" > /dev/null 2>&1
	done <<< "$CELLS"`

// BenchmarkCells compares (a) make in a loop, (b) dkms in a loop and (c) kofarm
// with warm images and no results.
func BenchmarkCells(b *testing.B) {
	dir, store := b.TempDir(), rig.Cache(b, "bench", "cells")
	rig.Write(b, dir, "farm.yaml", benchFarm)
	if cold := kofarm(b, dir, store); true {
		b.Logf("first run: %s", cold)
	}
	cells := builtCells(b, dir, store)
	root := b.TempDir()
	in := func(script string) func() cost {
		return func() cost {
			cmd := inRoot(store, script)
			cmd.Env = append(cmd.Env, "CELLS="+strings.Join(cells, "\n"), "ROOT="+root)
			return measure(b, cmd)
		}
	}
	for b.Loop() {
		m := medians(in(plainMake), in(dkmsLoop), func() cost {
			forget(b, dir, store)
			return kofarm(b, dir, store)
		})
		a, d, c := m[0], m[1], m[2]
		b.Logf("%d cells on %d cores, the median of %d", len(cells), runtime.NumCPU(), rounds)
		b.Logf("(a) make in a loop:  %s", a)
		b.Logf("(b) dkms in a loop:  %s", d)
		b.Logf("(c) kofarm, warm:    %s, coordinator %d MB", c, c.rss>>20)
		b.Logf("wall c/a %.2f, c/b %.2f; CPU c/a %.2f, c/b %.2f", ratio(c.wall, a.wall), ratio(c.wall, d.wall), ratio(c.cpu, a.cpu), ratio(c.cpu, d.cpu))
		b.ReportMetric(ratio(c.wall, a.wall), "c/a")
		b.ReportMetric(ratio(c.wall, d.wall), "c/b")
		b.ReportMetric(float64(c.rss>>20), "MB")
	}
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// builtCells lists module, version and kernel of every cell that is built.
func builtCells(b *testing.B, dir, store string) []string {
	b.Helper()
	r := rig.Kofarm(b, 0, dir, store, "plan")
	var cells []string
	for line := range strings.Lines(r.Stdout) {
		if f := strings.Fields(line); len(f) > 5 && f[5] == "yes" {
			cells = append(cells, strings.Join(f[:3], " "))
		}
	}
	return cells
}

// BenchmarkCached runs 200 cells again that the store holds.
func BenchmarkCached(b *testing.B) {
	dir, store := b.TempDir(), rig.Cache(b, "bench", "cached")
	const modules = 100
	var farm strings.Builder
	farm.WriteString("modules:\n")
	for i := range modules {
		name := fmt.Sprintf("hello%d", i)
		rig.Write(b, dir, name+"/dkms.conf", "PACKAGE_NAME="+name+"\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME=hello\nDEST_MODULE_LOCATION=/updates\n")
		rig.Write(b, dir, name+"/Makefile", "obj-m += hello.o\n")
		rig.Write(b, dir, name+"/hello.c", "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n")
		farm.WriteString("  - source: {dir: " + name + "}\n")
	}
	rig.Write(b, dir, "farm.yaml", farm.String()+`
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [amd64, cloud-amd64]
`)
	first := kofarm(b, dir, store)
	b.Logf("%d cells, first run: %s, coordinator %d MB", 2*modules, first, first.rss>>20)
	for b.Loop() {
		again := medians(func() cost { return kofarm(b, dir, store) })[0]
		b.Logf("%d cells, again: %s, coordinator %d MB", 2*modules, again, again.rss>>20)
		b.ReportMetric(again.wall.Seconds(), "cached-s")
		b.ReportMetric(float64(first.rss>>20), "MB")
	}
}
