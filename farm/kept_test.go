package farm

import (
	"bytes"
	"crypto"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/kofarm/kofarm/farm/attest"
	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/farm/sign"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/matrix"
)

// published is what users get of a folder: packages, what is said about them,
// and the index of its repository.
func published(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := contents(t, dir, "*")
	delete(all, ResultsFile)
	maps.Copy(all, contents(t, dir, "apt/dists/stable/main/binary-amd64/Packages"))
	maps.Copy(all, contents(t, dir, "logs/*/*"))
	return all
}

// stays finds what is not as it was, lists line by line. A source that is packed
// again has a statement on other cells, and its SBOM's digest is in that.
func stays(t *testing.T, want, got map[string]string) {
	t.Helper()
	for name, was := range want {
		is := got[name]
		switch {
		case is == "":
			t.Errorf("%s is gone", name)
		case was == is, strings.Contains(name, "source-only"), name == "SHA256SUMS.asc":
			continue
		case name != "Packages" && name != checksumsFile:
			t.Errorf("%s has changed: %.100q", name, is)
		}
		for line := range strings.Lines(was) {
			if !strings.Contains(is, line) && !strings.Contains(line, "source-only") {
				t.Errorf("%s lacks %s", name, line)
			}
		}
	}
}

func openPGPKey(t *testing.T) *sign.Key {
	t.Helper()
	e, err := openpgp.NewEntity("farm", "", "farm@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, DefaultHash: crypto.SHA256, Time: func() time.Time { return time.Unix(1e9, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := e.SerializePrivate(&b, nil); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := sign.Load(sign.Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// publisher puts out everything of three cells, of which all fit their kernels.
func publisher(t *testing.T) (*Collector, []*Result) {
	t.Helper()
	c := collector(t, t.TempDir(), matrix.BinariesOnly, matrix.Combined, matrix.SourceOnly)
	c.Output.Deb = &matrix.DebOutput{Packages: []matrix.PackageKind{matrix.ModulesPackage, matrix.MetaPackage, matrix.DKMSPackage}, Prebuilt: true,
		Repository: &matrix.APTRepository{Directory: "apt", Suite: "stable", Component: "main"}}
	c.Attester = &Attester{Builder: attest.Builder{ID: "https://example.org", Version: "1"}}
	results := built(t, c, fit(testCells(t, 4)))[:3]
	if _, err := c.Collect(t.Context(), results); err != nil {
		t.Fatal(err)
	}
	return c, results
}

// TestKept takes the result of the newest kernel's cell, or of all, away: what
// was published of it stays.
func TestKept(t *testing.T) {
	key := openPGPKey(t)
	for _, tt := range []struct {
		name    string
		signer  *sign.Key
		outcome Result
	}{
		{"infrastructure", nil, Result{Outcome: Infrastructure, Err: errors.New("no network")}},
		{"not yet", nil, Result{Outcome: Outcome(NotYet)}},
		{"signed", key, Result{Outcome: Infrastructure, Err: errors.New("no network")}},
		{"no boot", nil, Result{Outcome: Built, Record: &Record{}, Test: &Tested{Required: true, Err: errors.New("no qemu")}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, results := publisher(t)
			c.Signer = tt.signer
			if _, err := c.Collect(t.Context(), results); err != nil {
				t.Fatal(err)
			}
			want := published(t, c.Dir)
			for _, first := range []int{2, 0} { // only the last one has a result; none has
				now := slices.Clone(results)
				for i := range now[:3-first] {
					r := tt.outcome
					cell := *results[i].Cell
					r.Cell = &cell
					if r.Record != nil {
						cell.Boot = []*apt.Package{{}}
						r.Record = results[i].Record
					}
					now[i] = &r
				}
				got, err := c.Collect(t.Context(), now)
				if err != nil {
					t.Fatal(err)
				}
				stays(t, want, published(t, c.Dir))
				if n := len(got.Report.Attestations); n != len(got.Report.Files) || got.Kept == 0 {
					t.Errorf("%d files, %d attested, %d kept", len(got.Report.Files), n, got.Kept)
				}
			}
			if got, err := ReadReport(filepath.Join(c.Dir, ResultsFile)); err != nil || len(got.Warnings) != 2 || len(got.Warnings[0].Files) != 9 {
				t.Errorf("the warnings are gone: %+v, %v", got.Warnings, err)
			}
			if got, err := c.Collect(t.Context(), results); err != nil || got.Kept != 0 || !maps.Equal(published(t, c.Dir), want) {
				t.Errorf("complete again: %+v, %v", got, err)
			}
		})
	}
}

// TestNotKept gives reasons for which what was published does go.
func TestNotKept(t *testing.T) {
	c, results := publisher(t)
	first := results[0].Cell
	tarball := "hello-1.0-kernel" + first.Kernel.Release + "-x86_64.dkms.tar.gz"
	has := func(name string) bool { _, ok := published(t, c.Dir)[name]; return ok }
	collect := func(r *Result) *Report {
		t.Helper()
		got, err := c.Collect(t.Context(), []*Result{r, results[1], results[2]})
		if err != nil {
			t.Fatal(err)
		}
		return got.Report
	}
	// The next version is not built yet: the one before stays until that is known.
	next := *first
	next.Cell = &matrix.Cell{Module: &matrix.ModuleVersion{Name: "hello", Version: "1.1"}, Kernel: first.Kernel}
	next.Inputs.Source = &images.Source{Name: "hello", Version: "1.1", Conf: []byte("x"), Digest: "11"}
	collect(&Result{Cell: &next, Outcome: Infrastructure, Err: errors.New("no network")})
	if !has(tarball) {
		t.Error("the version before is gone")
	}
	collect(&Result{Cell: &next, Outcome: Failed, Record: &Record{Outcome: Failed, Log: results[0].Record.Log}})
	if has(tarball) {
		t.Error("the version before is there, though the next one has failed")
	}
	// What is not as it was published is not called that.
	collect(results[0])
	if err := os.WriteFile(filepath.Join(c.Dir, tarball), []byte("another"), 0o644); err != nil {
		t.Fatal(err)
	}
	report := collect(&Result{Cell: first, Outcome: Outcome(NotYet)})
	if slices.ContainsFunc(report.Files, func(f File) bool { return f.Path == tarball }) || strings.Contains(published(t, c.Dir)[checksumsFile], tarball) {
		t.Error("a changed file is published")
	}
}

// TestKeptIsNotSigned has a package in the folder that the key has not signed:
// whoever can write there gets no signature for it.
func TestKeptIsNotSigned(t *testing.T) {
	c, results := publisher(t)
	pending := []*Result{{Cell: results[0].Cell, Outcome: Infrastructure, Err: errors.New("no network")}, results[1], results[2]}
	c.Signer = openPGPKey(t)
	before := published(t, c.Dir)
	if _, err := c.Collect(t.Context(), pending); err == nil || !strings.Contains(err.Error(), "the key has not signed them") {
		t.Errorf("unsigned before: %v", err)
	}
	if !maps.Equal(before, published(t, c.Dir)) {
		t.Error("something was written")
	}
	if _, err := c.Collect(t.Context(), results); err != nil {
		t.Fatal(err)
	}
	report, err := ReadReport(filepath.Join(c.Dir, ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	evil := File{Path: report.Files[0].Path, Blob: Blob{sha256hex([]byte("evil")), 4}}
	if err := os.WriteFile(filepath.Join(c.Dir, evil.Path), []byte("evil"), 0o644); err != nil {
		t.Fatal(err)
	}
	report.Files[0] = evil
	if err := c.writeReport(report); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Collect(t.Context(), pending); err == nil || !strings.Contains(err.Error(), "SHA256SUMS.asc does not cover "+evil.Path) {
		t.Errorf("another package: %v", err)
	}
	c.Signer = openPGPKey(t)
	if _, err := c.Collect(t.Context(), pending); !errors.Is(err, sign.ErrSignature) {
		t.Errorf("another key: %v", err)
	}
}

func TestPending(t *testing.T) {
	cell := &Cell{Boot: []*apt.Package{{}}}
	for _, tt := range []struct {
		name string
		r    Result
		want bool
	}{
		{"built", Result{Outcome: Built, Record: &Record{}}, false},
		{"failed", Result{Outcome: Failed, Record: &Record{}}, false},
		{"excluded", Result{Outcome: Excluded}, false},
		{"infrastructure", Result{Outcome: Infrastructure}, true},
		{"not yet", Result{Outcome: Outcome(NotYet)}, true},
		{"no verdict", Result{Outcome: Built, Record: &Record{}, Test: &Tested{Required: true}}, true},
		{"verdict", Result{Outcome: Built, Record: &Record{}, Test: &Tested{Required: true, Verdict: boot.Crashed}}, false},
		{"not required", Result{Outcome: Built, Record: &Record{}, Test: &Tested{}}, false},
		{"cannot boot", Result{Cell: &Cell{}, Outcome: Built, Record: &Record{}, Test: &Tested{Required: true}}, false},
	} {
		if tt.r.Cell == nil {
			tt.r.Cell = cell
		}
		if got := tt.r.pending(); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}
