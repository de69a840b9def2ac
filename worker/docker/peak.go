package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
)

// peakTick is how often a container's peak of memory use is read on this
// machine. The kernel keeps it only as long as the container runs.
const peakTick = 20 * time.Millisecond

// peakOf follows the memory use of a container until it ends. The function that
// it gives ends that, and tells the peak so far in bytes, 0 where it is unknown:
// of a daemon elsewhere the peak of samples a second apart, or what the kernel
// of control groups of version 1 says itself.
func (r *Runner) peakOf(ctx context.Context, id string) (peak func() int64) {
	ctx, cancel := context.WithCancel(ctx)
	result := make(chan int64, 1)
	go func() {
		if r.looks() {
			result <- readPeak(ctx, id)
		} else {
			result <- r.samplePeak(ctx, id)
		}
	}()
	return sync.OnceValue(func() int64 { cancel(); return <-result })
}

// readPeak reads the kernel's own account until ctx ends.
func readPeak(ctx context.Context, id string) (most int64) {
	tick := time.NewTicker(peakTick)
	defer tick.Stop()
	for {
		most = max(most, peakNow(id))
		select {
		case <-ctx.Done():
			return most
		case <-tick.C:
		}
	}
}

// peakNow reads a container's peak on this machine, 0 where it is not there.
func peakNow(id string) int64 {
	for _, group := range groups(id) {
		for _, file := range []string{"memory/" + group + "/memory.max_usage_in_bytes", group + "/memory.peak"} {
			data, err := os.ReadFile("/sys/fs/cgroup/" + file)
			if err != nil {
				continue
			}
			n, _ := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
			return n
		}
	}
	return 0
}

// samplePeak reads what the daemon says every second until the container ends.
func (r *Runner) samplePeak(ctx context.Context, id string) (most int64) {
	resp, err := r.client.ContainerStats(ctx, id, true)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(io.LimitReader(resp.Body, maxProgress))
	for {
		var s container.StatsResponse
		if err := dec.Decode(&s); err != nil {
			return most
		}
		most = max(most, int64(s.MemoryStats.MaxUsage), int64(s.MemoryStats.Usage))
	}
}
