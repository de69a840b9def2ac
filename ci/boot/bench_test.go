package boot_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/kofarm/kofarm/farm/boot"
)

// BenchmarkBoot measures what a kernel costs with one module, and what each
// further module does, with software emulation.
func BenchmarkBoot(b *testing.B) {
	built := build(b, faultsFarm, "")
	k := built.kernel(b, "amd64")
	built.warm(b, k)
	good := built.module(b, "amd64", "kf_good")
	const more = 20
	measure := func(n int) (cpu, wall time.Duration) {
		tester := built.tester(b)
		var units []*boot.Unit
		for i := range n {
			name := fmt.Sprintf("kf_%04d", i) // two of the same name do not share a boot
			units = append(units, unit(name, bytes.ReplaceAll(good, []byte("kf_good"), []byte(name))))
		}
		begun := time.Now()
		results, err := tester.Test(b.Context(), k, units, nil)
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range results {
			if r.Err != nil || r.Report.Verdict != boot.Loaded {
				b.Fatalf("%+v", r)
			}
		}
		return tester.Stats().CPU, time.Since(begun)
	}
	var one, many, wall time.Duration
	for b.Loop() {
		cpu, w := measure(1)
		one, wall = one+cpu, wall+w
		cpu, _ = measure(1 + more)
		many += cpu
	}
	n := float64(b.N)
	b.ReportMetric(wall.Seconds()/n, "s/kernel")
	b.ReportMetric(one.Seconds()/n, "cpu-s/kernel")
	b.ReportMetric((many-one).Seconds()/n/more, "cpu-s/module")
}
