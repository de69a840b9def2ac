package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/attest"
	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/farm/report"
	"github.com/kofarm/kofarm/farm/sign"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/lock"
	"github.com/kofarm/kofarm/worker"
)

// session is an opened store with a plan made on it.
type session struct {
	store  *store.Store
	images *images.Assembler
	farm   *matrix.Farm
	plan   *farm.Plan
	dir    string // of the farm file

	downloads report.Downloads

	bundle   *farm.Bundle // that the farm comes from, or nil
	unpacked string       // its sources
}

// open reads a farm file, with its lock if there is one, and makes its plan.
func (a *app) open(ctx context.Context, file string) (*session, error) {
	s, _, err := a.load(ctx, file)
	return s, err
}

// load is open, and gives what has made the plan as well.
func (a *app) load(ctx context.Context, file string) (*session, *farm.Preparer, error) {
	s, p, err := a.begin(file)
	if err != nil {
		return nil, nil, err
	}
	if p.Lock, err = readLock(lock.FileName(file)); err != nil {
		return nil, nil, err
	}
	return s, p, a.prepare(ctx, s, p)
}

// begin reads a farm file and opens the store.
func (a *app) begin(file string) (*session, *farm.Preparer, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the farm file: %w", err)
	}
	f, err := a.parse(file, data)
	if err != nil {
		return nil, nil, err
	}
	s, err := a.openStore()
	if err != nil {
		return nil, nil, err
	}
	ses, p := a.wire(s, f, filepath.Dir(file))
	return ses, p, nil
}

// openStore opens the store that --store names, or the environment. Where it is not
// this user's to write to, the error says what to do.
func (a *app) openStore() (*store.Store, error) {
	if a.store == "" {
		return nil, errors.New("no store is named: give --store a folder, or set KOFARM_STORE, or HOME for the one in its cache folder")
	}
	s, err := store.Open(a.store)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		err = fmt.Errorf("%w; kofarm writes to its store whatever it does: name another folder with --store or KOFARM_STORE", err)
	}
	return s, infrastructure(err)
}

func (a *app) parse(file string, data []byte) (*matrix.Farm, error) {
	f, warnings, err := matrix.Parse(file, data)
	a.warn(warnings)
	return f, err
}

// wire makes what works on a store; dir is what the farm file's paths are
// relative to.
func (a *app) wire(s *store.Store, f *matrix.Farm, dir string) (*session, *farm.Preparer) {
	client := &fetch.Client{Dir: s.BlobDir(), Kept: s.CacheDir("releases"), Partial: s.PartialDir(), Stall: a.stall, Offline: a.offline, Log: a.log, Use: s.Use}
	p := &farm.Preparer{
		Fetch: client, Apt: &apt.Client{Fetch: client, Dir: s.CacheDir("indexes")},
		Program: images.Program{Path: worker.RecipePath, Data: worker.Recipe}, Now: time.Now(), Dir: dir, Locked: a.locked,
		Own: append([]string{f.File, lock.FileName(f.File), below(dir, f.Output.Directory), s.Dir()}, a.own...),
	}
	assembler := &images.Assembler{Store: s, Fetcher: farm.Packages{Client: client}}
	return &session{store: s, images: assembler, farm: f, dir: dir, downloads: downloadsOf(client)}, p
}

// downloadsOf gives what a client is downloading to those who show it.
func downloadsOf(c *fetch.Client) report.Downloads {
	return func() []report.Download {
		var list []report.Download
		for _, d := range c.Downloads() {
			list = append(list, report.Download(d))
		}
		return list
	}
}

// wait shows what is waited for until done is called.
func (a *app) wait(s *session, what string) (done func()) {
	return report.Wait(a.screen(), what, s.downloads)
}

// planning is what is waited for when a plan or a lock is made.
const planning = "reading indexes and sources"

// prepare makes the session's plan, and says what the lock does not cover.
func (a *app) prepare(ctx context.Context, s *session, p *farm.Preparer) error {
	done := a.wait(s, planning)
	plan, err := p.Prepare(ctx, s.farm)
	done()
	if err != nil {
		return classify(err)
	}
	a.warn(plan.Warnings)
	if len(plan.Drift) > 0 && !a.quiet {
		for _, d := range plan.Drift {
			fmt.Fprintln(a.stderr, "kofarm: "+d.Text(s.farm.File, p.Lock.File))
		}
		fmt.Fprintf(a.stderr, "kofarm: what %s does not cover was resolved for this run; `kofarm lock %s` pins it\n", p.Lock.File, s.farm.File)
	}
	s.plan = plan
	return nil
}

// readLock reads a lock, nil where there is none.
func readLock(file string) (*lock.Lock, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the lock: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, lock.MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the lock: %w", err)
	}
	return lock.Parse(file, data)
}

// classify tells mistakes in the farm file from faults of the world.
func classify(err error) error {
	if _, ok := errors.AsType[*matrix.Error](err); ok {
		return err
	}
	if _, ok := errors.AsType[*farm.DriftError](err); ok || errors.Is(err, farm.ErrNoLock) {
		return err
	}
	return infrastructure(err)
}

func (a *app) warn(warnings []matrix.Warning) {
	if a.quiet {
		return
	}
	for _, w := range warnings {
		fmt.Fprintln(a.stderr, w)
	}
}

// output resolves the output folder: the flag's, or the farm file's relative to
// its own folder.
func (s *session) output(flag string) string {
	if flag != "" {
		return flag
	}
	return s.path(s.farm.Output.Directory)
}

// apart refuses to write where a source would have it as part of itself from
// then on; output.directory is the same in every run, and left out.
func (s *session) apart(flag, file string) error {
	for _, c := range s.plan.Cells {
		if c.Inputs.Source != nil && c.Inputs.Source.Holds(file) {
			at := c.Module.Source
			return s.farm.Mistake(at.Pos, file, fmt.Sprintf("%s %s lies in the source %s, and would be part of it", flag, file, at),
				"write elsewhere, or below the farm file's output.directory, which is left out of the source")
		}
	}
	return nil
}

// path resolves a path of the farm file.
func (s *session) path(p string) string { return below(s.dir, p) }

// collector makes what writes the output, and finds out whether it can: the
// names of packages, the signing keys and the folder are looked at before
// anything is built.
func (s *session) collector(ctx context.Context, output string) (*farm.Collector, error) {
	if output != "" {
		if err := s.apart("--output", output); err != nil {
			return nil, err
		}
	}
	epoch, err := sourceDateEpoch()
	if err != nil {
		return nil, err
	}
	c := &farm.Collector{Store: s.store, Dir: s.output(output), Farm: filepath.Base(s.farm.File), Output: s.farm.Output, Epoch: epoch, Kernels: s.images}
	if c.Signer, err = packageKey(s.farm, s.dir); err != nil {
		return nil, err
	}
	if o := s.farm.Output.SignModules; o != nil {
		if c.ModuleKey, err = x509Key(ctx, s.farm.File, s.dir, o, ""); err != nil {
			return nil, err
		}
	}
	if o := s.farm.Output.Attest; o != nil {
		c.Attester = &farm.Attester{Builder: attest.Builder{ID: cmp.Or(o.Builder, attest.DefaultBuilder), Version: version()}}
		if o.Key != nil {
			if c.Attester.Key, err = x509Key(ctx, s.farm.File, s.dir, o.Key, "attestation key"); err != nil {
				return nil, err
			}
		}
	}
	if err := c.Check(s.plan.Cells); err != nil {
		return nil, err
	}
	return c, folderError(c.Claim())
}

// folderError tells a wrong choice of the output folder from a fault of the disk.
func folderError(err error) error {
	if _, ok := errors.AsType[*farm.FolderError](err); ok {
		return err
	}
	return infrastructure(err)
}

// packageKey loads the key that signs repositories and RPMs; nil where the farm
// file in dir names none.
func packageKey(f *matrix.Farm, dir string) (*sign.Key, error) {
	o := f.Output.Sign
	if o == nil {
		return nil, nil
	}
	k, err := sign.Load(sign.Source{File: below(dir, o.Key), Env: o.KeyEnv,
		PassphraseEnv: o.PassphraseEnv, PassphraseFile: below(dir, o.PassphraseFile)})
	if err == nil && !k.Expires().IsZero() && k.Expires().Before(time.Now()) {
		err = fmt.Errorf("the signing %s has expired on %s", k, k.Expires().UTC().Format(time.DateOnly))
	}
	if err != nil {
		return nil, f.Mistake(o.Pos, "", err.Error(), "")
	}
	return k, nil
}

// x509Key makes what signs modules or statements as a farm file in dir says, and
// tries it.
func x509Key(ctx context.Context, file, dir string, o *matrix.ModuleSigning, use string) (*modsign.Key, error) {
	source := modsign.Source{Use: use, Key: below(dir, o.Key), KeyEnv: o.KeyEnv, PKCS11: o.PKCS11, Command: slices.Clone(o.Command),
		Certificate: below(dir, o.Certificate), PassphraseEnv: o.PassphraseEnv, PassphraseFile: below(dir, o.PassphraseFile)}
	if len(source.Command) > 0 && strings.Contains(source.Command[0], "/") {
		source.Command[0] = below(dir, source.Command[0])
	}
	k, err := modsign.Load(source)
	if err == nil {
		err = k.Try(ctx)
	}
	if err != nil {
		return nil, &matrix.Error{File: file, Line: o.Pos.Line, Column: o.Pos.Column, Msg: err.Error()}
	}
	return k, nil
}

// below resolves a path of a farm file in dir.
func below(dir, p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(dir, p)
}

// sourceDateEpoch reads SOURCE_DATE_EPOCH, seconds since 1970; nil where it is
// not set. Anything that is no such number is an error.
func sourceDateEpoch() (*time.Time, error) {
	v, ok := os.LookupEnv("SOURCE_DATE_EPOCH")
	if !ok {
		return nil, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 || n > 1<<33 {
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH=%q is no number of seconds since 1970", v)
	}
	t := time.Unix(n, 0).UTC()
	return &t, nil
}

// limits are the worker's limits as the farm file has them.
func limits(f *matrix.Farm) worker.Limits {
	l := f.Limits
	return worker.Limits{Memory: int64(l.Memory), Processes: int64(l.Processes), Disk: int64(l.Disk),
		Output: int64(l.Output), Log: int64(l.Log), Timeout: l.Timeout}
}
