package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/kofarm/kofarm/farm/sign"
)

// YUM is a repository for dnf, yum and zypper.
type YUM struct {
	Dir    string
	Epoch  time.Time // the revision and the timestamps of the indexes
	Signer *sign.Key // signs the RPMs and repomd.xml; nil: both stay as they are
	// Keep leaves packages in the index that are not among those given, by what the present index says
	// if the Signer has signed it. Without it they are dropped.
	Keep bool

	step func(op, name string) error
}

// Files of repodata.
const (
	repodata       = "repodata"
	repomdFile     = repodata + "/repomd.xml"
	repomdSig      = repodata + "/repomd.xml.asc"
	repomdKey      = repodata + "/repomd.xml.key" // where zypper looks for the key
	repomdPrevious = repodata + "/repomd.xml.previous"

	maxRepomd = 1 << 20
)

// Update makes the repository hold the packages. It may be called again after an error or a kill.
func (y *YUM) Update(ctx context.Context, rpms []File) (err error) {
	if y.Dir == "" {
		return errors.New("yum repository: no folder is given")
	}
	t, err := openTree(y.Dir, y.step, repodata, packagesDir)
	if err != nil {
		return fmt.Errorf("yum repository %s: %w", y.Dir, err)
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.removeAll(staged); err != nil {
		return fmt.Errorf("yum repository %s: %w", y.Dir, err)
	}
	u := &yumUpdate{y: y, t: t}
	if err := u.run(ctx, rpms); err != nil {
		return fmt.Errorf("yum repository %s: %w", y.Dir, err)
	}
	return nil
}

// yumUpdate is one update.
type yumUpdate struct {
	y *YUM
	t *tree

	text  []byte // the repomd.xml that clients see now; nil for none
	rpms  []*rpmFile
	files map[string][]byte // the compressed indexes, by path
}

func (u *yumUpdate) run(ctx context.Context, files []File) (err error) {
	if u.text, err = u.t.read(repomdFile, maxRepomd); err != nil {
		return err
	}
	if err := u.describe(ctx, files); err != nil {
		return err
	}
	err = each(ctx, len(u.rpms), func(i int) (err error) {
		f := u.rpms[i]
		f.path, err = u.t.place(packagesDir, f.base(), f.digest, f.write(u.y.Signer, u.y.Epoch))
		return err
	})
	if err != nil {
		return err
	}
	md, err := u.index()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := u.publish(md); err != nil {
		return err
	}
	return u.retire(md)
}

// describe reads the packages, and those of the present index that are to be kept.
func (u *yumUpdate) describe(ctx context.Context, files []File) error {
	given := make([]*rpmFile, len(files))
	err := each(ctx, len(files), func(i int) (err error) {
		given[i], err = readRPM(files[i].Path, u.y.Signer, u.y.Epoch)
		return err
	})
	if err != nil {
		return err
	}
	seen := map[string]*rpmFile{}
	for _, f := range given {
		if other, dup := seen[f.identity()]; dup {
			if other.digest != f.digest {
				return fmt.Errorf("%w: %s and %s are %s", ErrConflict, other.from, f.from, f.identity())
			}
			continue
		}
		seen[f.identity()] = f
		u.rpms = append(u.rpms, f)
	}
	if err := u.keep(ctx, seen); err != nil {
		return err
	}
	sortRPMs(u.rpms)
	return nil
}

// keep adds the packages of the present index that are not among those given.
func (u *yumUpdate) keep(ctx context.Context, seen map[string]*rpmFile) error {
	if !u.y.Keep || u.text == nil {
		return nil
	}
	listed, err := u.trusted()
	if err != nil {
		return fmt.Errorf("keeping packages: %w", err)
	}
	var want []listedRPM
	for _, l := range listed {
		f := rpmFile{name: l.Name, arch: l.Arch, evr: l.Version}
		if seen[f.identity()] == nil {
			want = append(want, l)
		}
	}
	kept := make([]*rpmFile, len(want))
	err = each(ctx, len(want), func(i int) (err error) {
		if !inPackages(want[i].Location.Href) {
			return fmt.Errorf("%w: the location %q", ErrFormat, want[i].Location.Href)
		}
		kept[i], err = readRPM(filepath.Join(u.y.Dir, want[i].Location.Href), nil, u.y.Epoch)
		if err == nil && kept[i].sha256 != want[i].Checksum.Value {
			err = fmt.Errorf("%w: %s is not the package that the index names", ErrUntrusted, want[i].Location.Href)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("keeping packages: %w", err)
	}
	u.rpms = append(u.rpms, kept...)
	return nil
}

// trusted lists the packages of the present index, if it is the signer's.
func (u *yumUpdate) trusted() ([]listedRPM, error) {
	if u.y.Signer != nil {
		sig, err := u.t.read(repomdSig, maxRepomd)
		if err != nil {
			return nil, err
		}
		if err := u.y.Signer.VerifyDetached(u.text, sig); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrUntrusted, repomdFile, err)
		}
	}
	md, err := parseRepomd(u.text)
	if err != nil {
		return nil, err
	}
	return u.primary(md)
}

// primary reads the primary.xml that a repomd.xml names; nothing where it names none.
func (u *yumUpdate) primary(md *repomd) ([]listedRPM, error) {
	for _, d := range md.Data {
		if d.Type != "primary" {
			continue
		}
		data, err := u.t.read(d.Location.Href, maxIndex)
		if err != nil {
			return nil, err
		}
		if digestOf(data).sha256 != d.Checksum.Value {
			return nil, fmt.Errorf("%w: %s has changed", ErrUntrusted, d.Location.Href)
		}
		plain, err := unpacked(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Location.Href, err)
		}
		return parsePrimary(plain)
	}
	return nil, nil
}

// index makes the indexes, whose names have their checksums, and repomd.xml.
func (u *yumUpdate) index() (*repomd, error) {
	plain, err := indexes(u.rpms)
	if err != nil {
		return nil, err
	}
	at := epochOf(u.y.Epoch)
	md := &repomd{Revision: at}
	u.files = map[string][]byte{}
	for _, name := range []string{"primary", "filelists", "other"} {
		packed, err := gzipped(plain[name])
		if err != nil {
			return nil, err
		}
		d, open := digestOf(packed), digestOf(plain[name])
		href := path.Join(repodata, d.sha256+"-"+name+".xml.gz")
		u.files[href] = packed
		md.Data = append(md.Data, repomdData{Type: name, Checksum: checksum{Type: "sha256", Value: d.sha256},
			OpenChecksum: checksum{Type: "sha256", Value: open.sha256}, Location: location{href}, Timestamp: at, Size: d.size, OpenSize: open.size})
	}
	return md, nil
}

// publish makes the folder of the indexes as it is to be, and puts it in the place of the old one in
// one step, so that repomd.xml always fits its signature.
func (u *yumUpdate) publish(md *repomd) error {
	files, err := u.repodata(md)
	if err != nil {
		return err
	}
	if same, err := u.published(files); same || err != nil {
		return err
	}
	if err := u.stage(files); err != nil {
		return err
	}
	if _, err := u.t.root.Lstat(repodata); errors.Is(err, fs.ErrNotExist) {
		if err := u.t.mkdirs(repodata); err != nil {
			return err
		}
	}
	if err := u.t.flush(); err != nil {
		return err
	}
	err = u.t.exchange(staged, repodata)
	if errors.Is(err, errNoExchange) {
		err = u.replace(files)
	}
	return err
}

// repodata are the files of the folder that this update writes, by path: the indexes, repomd.xml, and
// what belongs to its signature.
func (u *yumUpdate) repodata(md *repomd) (map[string][]byte, error) {
	text, err := md.bytes()
	if err != nil {
		return nil, err
	}
	files := maps.Clone(u.files)
	files[repomdFile] = text
	if u.text != nil && !bytes.Equal(u.text, text) {
		files[repomdPrevious] = u.text
	}
	if u.y.Signer == nil {
		return files, nil
	}
	if files[repomdSig], err = u.y.Signer.DetachArmored(bytes.NewReader(text), u.y.Epoch); err != nil {
		return nil, err
	}
	files[repomdKey], err = u.y.Signer.PublicArmored()
	return files, err
}

// published says whether the folder has all the files already, and no signature besides.
func (u *yumUpdate) published(files map[string][]byte) (bool, error) {
	for _, name := range sortedKeys(files) {
		if ok, err := u.t.has(name, digestOf(files[name])); !ok || err != nil {
			return false, err
		}
	}
	_, err := u.t.root.Lstat(repomdSig)
	return u.y.Signer != nil || errors.Is(err, fs.ErrNotExist), nil
}

// staged is the folder of the indexes as it is to be.
const staged = tempPrefix + repodata

// stage makes it: the files, and the indexes of the repomd.xml before.
func (u *yumUpdate) stage(files map[string][]byte) error {
	for _, name := range sortedKeys(files) {
		if err := u.t.putBytes(path.Join(staged, path.Base(name)), files[name]); err != nil {
			return err
		}
	}
	before := files[repomdPrevious]
	if before == nil { // this update has no news: the state before stays the same too
		var err error
		if before, err = u.t.read(repomdPrevious, maxRepomd); before == nil || err != nil {
			return err
		}
		if err := u.t.putBytes(path.Join(staged, path.Base(repomdPrevious)), before); err != nil {
			return err
		}
	}
	old, err := parseRepomd(before)
	if err != nil {
		return nil // nobody reads it
	}
	for _, d := range old.Data {
		if err := u.stageOld(d.Location.Href); err != nil {
			return err
		}
	}
	return nil
}

// stageOld links an index of the repomd.xml before into the new folder.
func (u *yumUpdate) stageOld(name string) error {
	to := path.Join(staged, path.Base(name))
	if _, err := u.t.root.Lstat(to); err == nil || path.Dir(name) != repodata {
		return nil
	}
	fi, err := u.t.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return err
	}
	return u.t.link(name, to)
}

// replace is for file systems that cannot exchange folders: file by file, repomd.xml last, right after
// its signature.
func (u *yumUpdate) replace(files map[string][]byte) error {
	names := slices.DeleteFunc(sortedKeys(files), func(name string) bool { return name == repomdFile || name == repomdSig })
	if sig := files[repomdSig]; sig != nil {
		names = append(names, repomdSig)
	}
	for _, name := range append(names, repomdFile) {
		if err := u.t.putBytes(name, files[name]); err != nil {
			return err
		}
	}
	if files[repomdSig] != nil {
		return nil
	}
	if err := u.t.remove(repomdSig); err != nil {
		return err
	}
	return u.t.remove(repomdKey)
}

// retire removes what neither this repomd.xml nor the one before names.
func (u *yumUpdate) retire(md *repomd) error {
	keep := map[string]bool{repomdFile: true, repomdPrevious: true, repomdSig: u.y.Signer != nil, repomdKey: u.y.Signer != nil}
	for _, d := range md.Data {
		keep[d.Location.Href] = true
	}
	for _, f := range u.rpms {
		keep[f.path] = true
	}
	if err := u.keepPrevious(keep); err != nil {
		return err
	}
	if err := u.t.clean(packagesDir, func(name string) bool { return keep[name] || path.Ext(name) != ".rpm" }); err != nil {
		return err
	}
	if err := u.t.clean(repodata, func(name string) bool { return keep[name] }); err != nil {
		return err
	}
	return u.t.removeAll(staged)
}

// keepPrevious adds what the repomd.xml before names.
func (u *yumUpdate) keepPrevious(keep map[string]bool) error {
	text, err := u.t.read(repomdPrevious, maxRepomd)
	if text == nil || err != nil {
		return err
	}
	before, err := parseRepomd(text)
	if err != nil {
		return nil // no client reads it
	}
	for _, d := range before.Data {
		keep[d.Location.Href] = true
	}
	listed, err := u.primary(before)
	if err != nil && !errors.Is(err, ErrUntrusted) && !errors.Is(err, ErrFormat) { // nor those
		return err
	}
	for _, l := range listed {
		keep[l.Location.Href] = true
	}
	return nil
}
