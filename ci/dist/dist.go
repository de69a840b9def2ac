// Package dist reads and compares what runs of kofarm have made, for tests.
package dist

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// Results reads the results.json of a folder that a run has filled.
func Results(t testing.TB, dist string) *farm.Report {
	t.Helper()
	r, err := farm.ReadReport(filepath.Join(dist, farm.ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Same compares two folders that runs have filled: names, modes and bytes of
// all files. What may differ is left out: of logs the bytes, as several compilers
// write to one, and of results.json durations, memory and what was cached.
func Same(t testing.TB, got, want string) {
	t.Helper()
	if Results(t, want).Counts.Built == 0 {
		t.Errorf("in %s nothing is built: there is nothing to compare with", want)
	}
	gotFiles, wantFiles := rig.Files(t, got), rig.Files(t, want)
	if !slices.Equal(gotFiles, wantFiles) {
		t.Fatalf("files of dist:\ngot  %s\nwant %s", strings.Join(gotFiles, "\n     "), strings.Join(wantFiles, "\n     "))
	}
	for _, name := range gotFiles {
		name, _, _ = strings.Cut(name, " ")
		if strings.HasPrefix(name, "logs/") {
			continue
		}
		a, b := settled(t, got, name), settled(t, want, name)
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs", name)
			if name == farm.ResultsFile {
				t.Logf("%s", diff(t, a, b))
			}
		}
	}
}

// settled is a file's content, results.json's without what may differ.
func settled(t testing.TB, dist, name string) []byte {
	t.Helper()
	if name != farm.ResultsFile {
		return rig.Read(t, dist, name)
	}
	r := Results(t, dist)
	r.Counts.Cached = 0
	for i := range r.Cells {
		r.Cells[i].Cached, r.Cells[i].Seconds, r.Cells[i].MemoryPeak = false, 0, 0
	}
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func diff(t testing.TB, a, b []byte) string {
	dir := t.TempDir()
	out, _ := exec.Command("diff", rig.Write(t, dir, "got", string(a)), rig.Write(t, dir, "want", string(b))).Output()
	return string(out[:min(len(out), 2000)])
}
