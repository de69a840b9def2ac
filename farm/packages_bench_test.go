package farm

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/kofarm/kofarm/matrix"
)

// storedResults puts n results into the store, each one module of some 100 kB.
func storedResults(b *testing.B, c *Collector, n int) []*Result {
	b.Helper()
	good := goodModule(b)
	w, err := newLog(c.Store)
	if err != nil {
		b.Fatal(err)
	}
	log, err := w.commit()
	if err != nil {
		b.Fatal(err)
	}
	var results []*Result
	for i, cell := range testCells(b, n) {
		noise := make([]byte, 100<<10)
		r := rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)})
		if _, err := r.Read(noise); err != nil {
			b.Fatal(err)
		}
		d, err := c.Store.Put(append(bytes.Clone(good), noise...), moduleType)
		if err != nil {
			b.Fatal(err)
		}
		results = append(results, &Result{Cell: cell, Outcome: Built, Record: &Record{Outcome: Built, Log: log,
			Modules: []Module{{Name: "hello.ko", Blob: blobOf(d)}}, Check: Checked{Format: checkFormat}}})
	}
	return results
}

// peakMemory gives the process's peak memory in bytes since the last call.
func peakMemory(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // proc(5)
		b.Fatal(err)
	}
	return float64(kb) * 1024
}

// timed runs a tool and gives its seconds.
func timed(b *testing.B, dir, name string, args ...string) float64 {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), name, args...)
	cmd.Dir = dir
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", name, err, out)
	}
	return time.Since(start).Seconds()
}

// BenchmarkPackages packs 500 stored results into debs, RPMs and both
// repositories, and does part of it with the usual tools beside that:
// `dpkg-deb --build` of the same 500 packages, one after the other, and
// createrepo_c on the same RPMs.
func BenchmarkPackages(b *testing.B) {
	c := &Collector{Store: openStore(b), Kernels: noImages{}, Output: matrix.Output{Modules: matrix.Plain,
		Deb: &matrix.DebOutput{Packages: []matrix.PackageKind{matrix.ModulesPackage}, Repository: &matrix.APTRepository{
			Directory: "apt", Suite: "stable", Component: "main", Origin: "x", Label: "x"}},
		RPM: &matrix.RPMOutput{Style: matrix.KernelModule, Packages: []matrix.PackageKind{matrix.ModulesPackage},
			Repository: &matrix.YUMRepository{Directory: "yum"}}}}
	results := storedResults(b, c, 500)
	for b.Loop() {
		c.Dir = filepath.Join(b.TempDir(), "dist")
		if err := os.RemoveAll(filepath.Join(c.Store.Dir(), "refs", packRef)); err != nil { // nothing is packed yet
			b.Fatal(err)
		}
		peakMemory(b)
		start := time.Now()
		collected, err := c.Collect(b.Context(), results)
		if err != nil {
			b.Fatal(err)
		}
		if len(collected.Refused) > 0 {
			b.Fatal(collected.Refused)
		}
		b.ReportMetric(time.Since(start).Seconds(), "kofarm-s")
		b.ReportMetric(peakMemory(b)/(1<<20), "kofarm-MiB")
	}
	trees := b.TempDir()
	timed(b, trees, "sh", "-ec", `for d in "$1"/*.deb; do n=${d##*/}; dpkg-deb -R "$d" "${n%.deb}"; done`, "sh", c.Dir)
	b.ReportMetric(timed(b, trees, "sh", "-ec", `for d in */; do dpkg-deb --root-owner-group --build "${d%/}" >/dev/null; done`), "dpkg-deb-s")
	b.ReportMetric(timed(b, trees, "createrepo_c", "-q", "-o", ".", filepath.Join(c.Dir, "yum")), "createrepo_c-s")
}
