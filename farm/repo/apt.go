package repo

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/farm/sign"
)

// APT is an apt repository: one component of one suite. Other suites and components may lie in the
// same folder.
type APT struct {
	Dir         string
	Suite       string // such as "bookworm"
	Codename    string // default: Suite
	Component   string // default: main
	Origin      string
	Label       string
	Description string
	// Architectures get an index even where no package is of theirs. Packages of architecture "all" are
	// in the index of each one.
	Architectures []string
	Epoch         time.Time // the Release's Date, unless the repository has a later one
	Signer        *sign.Key // nil: unsigned, for clients that are told [trusted=yes]
	// Keep leaves packages in the index that are not among those given, by what the present index says
	// if the Signer has signed it. Without it they are dropped.
	Keep bool

	step func(op, name string) error
}

func (a *APT) component() string {
	if a.Component == "" {
		return "main"
	}
	return a.Component
}

func (a *APT) codename() string {
	if a.Codename == "" {
		return a.Suite
	}
	return a.Codename
}

func (a *APT) check() error {
	if a.Dir == "" {
		return errors.New("no folder is given")
	}
	err := errors.Join(checkName("suite", a.Suite), checkName("codename", a.codename()), checkName("component", a.component()))
	for _, arch := range a.Architectures {
		if !debArch.MatchString(arch) {
			err = errors.Join(err, fmt.Errorf("architecture %q: %w", arch, ErrFormat))
		}
	}
	for _, value := range []string{a.Origin, a.Label, a.Description} {
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			err = errors.Join(err, fmt.Errorf("%q: origin, label and description are one line each", value))
		}
	}
	return err
}

// Update makes the repository hold the packages. It may be called again after an error or a kill.
func (a *APT) Update(ctx context.Context, debs []File) (err error) {
	if err := a.check(); err != nil {
		return fmt.Errorf("apt repository %s: %w", a.Dir, err)
	}
	t, err := openTree(a.Dir, a.step, "dists/"+a.Suite, "pool/"+a.component())
	if err != nil {
		return fmt.Errorf("apt repository %s: %w", a.Dir, err)
	}
	defer func() { err = errors.Join(err, t.close()) }()
	u := &aptUpdate{a: a, t: t}
	if err := u.run(ctx, debs); err != nil {
		return fmt.Errorf("apt repository %s, suite %s: %w", a.Dir, a.Suite, err)
	}
	return nil
}

// aptUpdate is one update.
type aptUpdate struct {
	a *APT
	t *tree

	text    []byte   // of the Release that clients see now; nil for none
	now     *release // what it says
	trusted bool
	debs    []*debFile
	files   map[string][]byte // the indexes, by path below the suite
}

// file is a path of the suite.
func (u *aptUpdate) file(p string) string { return path.Join("dists", u.a.Suite, p) }

func (u *aptUpdate) run(ctx context.Context, files []File) (err error) {
	if u.text, u.now, u.trusted, err = u.current(); err != nil {
		return err
	}
	if err := u.describe(ctx, files); err != nil {
		return err
	}
	if err := u.fillPool(ctx); err != nil {
		return err
	}
	r, err := u.index()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := u.publish(r); err != nil {
		return err
	}
	return u.retire()
}

// describe reads the packages, and those of the present index that are to be kept.
func (u *aptUpdate) describe(ctx context.Context, files []File) error {
	given := make([]*debFile, len(files))
	err := each(ctx, len(files), func(i int) (err error) {
		given[i], err = readDeb(files[i].Path)
		return err
	})
	if err != nil {
		return err
	}
	seen := map[string]*debFile{}
	for _, d := range given {
		if other, dup := seen[d.identity()]; dup {
			if other.digest != d.digest {
				return fmt.Errorf("%w: %s and %s are %s", ErrConflict, other.from, d.from, d.identity())
			}
			continue
		}
		seen[d.identity()] = d
		u.debs = append(u.debs, d)
	}
	if err := u.keep(ctx, seen); err != nil {
		return err
	}
	sortDebs(u.debs)
	return nil
}

// each calls f for 0 … n-1, several at a time.
func each(ctx context.Context, n int, f func(i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs())
	for i := range n {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return f(i)
		})
	}
	return g.Wait()
}

// trust says whether the new Release may repeat what the present one says.
func (u *aptUpdate) trust() error {
	if u.trusted {
		return nil
	}
	return fmt.Errorf("%w: %s: sign with the key that signed it, or remove dists/%s and give all packages", ErrUntrusted, u.file("InRelease"), u.a.Suite)
}

// keep adds the packages of the present index that are not among those given.
func (u *aptUpdate) keep(ctx context.Context, seen map[string]*debFile) error {
	if !u.a.Keep || u.now == nil {
		return nil
	}
	want := map[string]digest{}
	for p, d := range u.now.files {
		if path.Base(p) != "Packages" || !strings.HasPrefix(p, u.a.component()+"/") {
			continue
		}
		if err := u.trust(); err != nil {
			return err
		}
		if err := u.listed(p, d, seen, want); err != nil {
			return err
		}
	}
	names := sortedKeys(want)
	kept := make([]*debFile, len(names))
	err := each(ctx, len(names), func(i int) (err error) {
		if kept[i], err = readDeb(filepath.Join(u.a.Dir, names[i])); err == nil && kept[i].digest != want[names[i]] {
			err = fmt.Errorf("%w: %s is not the package that the index names", ErrUntrusted, names[i])
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("keeping packages: %w", err)
	}
	u.debs = append(u.debs, kept...)
	return nil
}

// listed adds the packages of an index to want that have not been seen.
func (u *aptUpdate) listed(p string, d digest, seen map[string]*debFile, want map[string]digest) error {
	name := u.file(byHash(p, d))
	data, err := u.t.read(name, maxIndex)
	if err != nil {
		return err
	}
	if digestOf(data) != d {
		return fmt.Errorf("%w: %s has changed", ErrUntrusted, name)
	}
	return stanzas(data, func(s stanza) error {
		file := s.get("Filename")
		sum := s.get("SHA256")
		var size int64
		if _, err := fmt.Sscanf(s.get("Size"), "%d", &size); err != nil || !isLocal(file) || !isSHA256(sum) {
			return fmt.Errorf("%w: %s: the entry of %q", ErrFormat, name, s.get("Package"))
		}
		if seen[identity(s.get("Package"), s.get("Version"), s.get("Architecture"))] == nil {
			want[file] = digest{sum, size}
		}
		return nil
	})
}

// fillPool writes the packages.
func (u *aptUpdate) fillPool(ctx context.Context) error {
	return each(ctx, len(u.debs), func(i int) (err error) {
		d := u.debs[i]
		d.path, err = u.t.place(d.dir(u.a.component()), d.base(), d.digest, copyFrom(d.from))
		return err
	})
}

// architectures lists those that get an index.
func (u *aptUpdate) architectures() []string {
	archs := slices.Clone(u.a.Architectures)
	for _, d := range u.debs {
		if d.arch != archAll {
			archs = append(archs, d.arch)
		}
	}
	if len(archs) == 0 {
		archs = append(archs, archAll)
	}
	slices.Sort(archs)
	return slices.Compact(archs)
}

// index makes the indexes and the Release.
func (u *aptUpdate) index() (*release, error) {
	others := u.now.others(u.a.component())
	if len(others) > 0 {
		if err := u.trust(); err != nil {
			return nil, err
		}
	}
	archs := u.architectures()
	r := &release{date: u.date(), components: []string{u.a.component()}, archs: archs, files: others}
	u.files = map[string][]byte{}
	for _, arch := range archs {
		if err := u.addIndex(path.Join(u.a.component(), "binary-"+arch, "Packages"), packages(u.debs, arch)); err != nil {
			return nil, err
		}
	}
	for p := range others {
		component, rest, _ := strings.Cut(p, "/")
		r.components = append(r.components, component)
		if arch, ok := strings.CutPrefix(path.Dir(rest), "binary-"); ok {
			r.archs = append(r.archs, arch)
		}
	}
	for _, list := range []*[]string{&r.components, &r.archs} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	for p, data := range u.files {
		r.files[p] = digestOf(data)
	}
	return r, nil
}

func (u *aptUpdate) addIndex(name string, plain []byte) (err error) {
	u.files[name] = plain
	if u.files[name+".gz"], err = gzipped(plain); err != nil {
		return err
	}
	u.files[name+".xz"], err = xzipped(plain)
	return err
}

// date never goes back: apt keeps the Release that it has where a server's is older.
func (u *aptUpdate) date() time.Time {
	at := time.Unix(epochOf(u.a.Epoch), 0).UTC()
	if u.now != nil && u.trusted && u.now.date.After(at) {
		return u.now.date
	}
	return at
}

// previousRelease holds the text of the Release before, whose files are still there.
const previousRelease = "Release.previous"

// publish writes the indexes and then, by the last rename, makes clients see them.
func (u *aptUpdate) publish(r *release) error {
	for _, p := range sortedKeys(u.files) {
		if err := u.t.putBytes(u.file(byHash(p, r.files[p])), u.files[p]); err != nil {
			return err
		}
	}
	text := r.text(u.a)
	if u.text != nil && string(u.text) != string(text) {
		if err := u.t.putBytes(u.file(previousRelease), u.text); err != nil {
			return err
		}
	}
	for _, p := range sortedKeys(u.files) { // for clients that do not know by-hash
		if err := u.t.putBytes(u.file(p), u.files[p]); err != nil {
			return err
		}
	}
	if err := u.t.flush(); err != nil {
		return err
	}
	u.now = r
	return u.publishRelease(text, r.date)
}

// releaseKey is the public key for those who may take it from there, beside the
// Release, as the Open Build Service has it. It goes into a signed-by= as it is.
const releaseKey = "Release.key"

func (u *aptUpdate) publishRelease(text []byte, at time.Time) error {
	if u.a.Signer == nil {
		if err := u.t.putBytes(u.file("Release"), text); err != nil {
			return err
		}
		for _, name := range []string{"InRelease", "Release.gpg", releaseKey} {
			if err := u.t.remove(u.file(name)); err != nil {
				return err
			}
		}
		return nil
	}
	key, err := u.a.Signer.PublicArmored()
	if err != nil {
		return err
	}
	detached, err := u.a.Signer.DetachArmored(strings.NewReader(string(text)), at)
	if err != nil {
		return err
	}
	inRelease, err := u.a.Signer.ClearSign(text, at)
	if err != nil {
		return err
	}
	if err := u.t.putBytes(u.file(releaseKey), key); err != nil {
		return err
	}
	if err := u.t.putBytes(u.file("Release"), text); err != nil {
		return err
	}
	if err := u.t.putBytes(u.file("Release.gpg"), detached); err != nil {
		return err
	}
	return u.t.putBytes(u.file("InRelease"), inRelease)
}

// retire removes what neither this Release nor the one before names.
func (u *aptUpdate) retire() error {
	keep := map[string]bool{}
	for p, d := range u.now.files {
		keep[u.file(p)], keep[u.file(byHash(p, d))] = true, true
	}
	if text, err := u.t.read(u.file(previousRelease), maxStanza); err != nil {
		return err
	} else if before, err := parseRelease(text); text != nil && err == nil {
		for p, d := range before.files {
			keep[u.file(byHash(p, d))] = true
		}
	}
	if err := u.t.clean(u.file(u.a.component()), func(name string) bool { return keep[name] }); err != nil {
		return err
	}
	named, err := u.named()
	if err != nil {
		return err
	}
	return u.t.clean("pool/"+u.a.component(), func(name string) bool { return named[name] || path.Ext(name) != ".deb" })
}

// named lists the packages of this component that any index of any suite names.
func (u *aptUpdate) named() (map[string]bool, error) {
	names, err := u.t.files("dists")
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, name := range names {
		if !isIndex(name, u.a.component()) {
			continue
		}
		data, err := u.t.read(name, maxIndex)
		if err == nil {
			data, err = unpacked(data)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		err = stanzas(data, func(s stanza) error {
			named[s.get("Filename")] = true
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return named, nil
}

// isIndex says whether a path is dists/<suite>/<component>/binary-<arch>/Packages, compressed or not,
// or one by its hash.
func isIndex(name, component string) bool {
	parts := strings.Split(name, "/")
	if len(parts) < 5 || parts[2] != component || !strings.HasPrefix(parts[3], "binary-") {
		return false
	}
	return len(parts) == 5 && strings.HasPrefix(parts[4], "Packages") || len(parts) == 7 && parts[4] == "by-hash"
}
