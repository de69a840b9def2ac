package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/farm/repo"
	"github.com/kofarm/kofarm/farm/resign"
	"github.com/kofarm/kofarm/farm/sign"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/matrix"
)

type signFlags struct {
	farm          string
	source        modsign.Source
	hash          string
	output        string
	verify, strip bool
}

func (a *app) signCommand() *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign FILE...",
		Short: "Sign the modules in packages that exist, check their signatures, or take those off",
		Long: `sign replaces the signatures of the kernel modules in files: loose modules, DKMS
tarballs, debs and RPMs. All else in a file stays as it is; the signature of the
package itself is made again with the farm file's output.sign, or else dropped. A
repository that lists a file has to be updated.

The key is that of the farm file's output.sign-modules, unless flags name one. A
passphrase or PIN is never a flag's value.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.sign(cmd.Context(), args, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.farm, "farm", "", "farm `file` whose output.sign-modules and output.sign are used (default: farm.yaml, where no key is named)")
	flags.StringVar(&f.source.Key, "key", "", "`file` with the secret key: PKCS #8, #1, #12 or SEC 1")
	flags.StringVar(&f.source.KeyEnv, "key-env", "", "environment `variable` that holds the secret key")
	flags.StringVar(&f.source.PKCS11, "pkcs11", "", "`URI` of a key in a token, with module-path; needs OpenSC's pkcs11-tool")
	flags.StringArrayVar(&f.source.Command, "command", nil, "`program` that signs a hash from stdin to stdout; once more for each of its arguments")
	flags.StringVar(&f.source.Certificate, "certificate", "", "`file` with the key's certificate")
	flags.StringVar(&f.source.PassphraseEnv, "passphrase-env", "", "environment `variable` with the passphrase or PIN")
	flags.StringVar(&f.source.PassphraseFile, "passphrase-file", "", "`file` whose first line is the passphrase or PIN; /dev/fd/3 for an open one")
	flags.StringVar(&f.hash, "hash", matrix.KernelsHash, "sha224, sha256, sha384 or sha512; \"kernel\" is that of the present signature, else sha256")
	flags.StringVarP(&f.output, "output", "o", "", "`folder` for the new files (default: each replaces the old one)")
	flags.BoolVar(&f.verify, "verify", false, "check that the certificate's key has signed every module; write nothing")
	flags.BoolVar(&f.strip, "strip", false, "take signatures off: what is left is what was built")
	cmd.MarkFlagsMutuallyExclusive("verify", "strip")
	return cmd
}

// signed is what a line of output says.
type signed struct {
	File    string   `json:"file"`
	Modules []string `json:"modules"`
	Dropped []string `json:"dropped,omitzero"`
	SHA256  string   `json:"sha256,omitzero"` // of the new file
}

func (a *app) sign(ctx context.Context, files []string, f signFlags) error {
	kinds := make([]resign.Kind, len(files))
	for i, file := range files { // before anything is written
		var err error
		if kinds[i], err = resign.KindOf(file); err != nil {
			return err
		}
	}
	s, err := f.signer(ctx)
	if err != nil {
		return err
	}
	all, modules := []signed{}, 0
	var errs []error
	for i, file := range files {
		done, err := s.file(ctx, file, kinds[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
			continue
		}
		all, modules = append(all, *done), modules+len(done.Modules)
		if !a.quiet && !a.json {
			a.printSigned(done, s.verb)
		}
	}
	if a.json {
		if err := a.encode(all); err != nil {
			return err
		}
	}
	if len(errs) == 0 && modules == 0 {
		errs = append(errs, resign.ErrNoModules)
	}
	if err := errors.Join(errs...); err != nil {
		return &exitError{exitFailed, err}
	}
	return nil
}

func (a *app) printSigned(done *signed, verb string) {
	what := fmt.Sprintf("%d modules", len(done.Modules))
	if len(done.Modules) == 1 {
		what = "1 module"
	}
	fmt.Fprintf(a.stdout, "%s: %s %s\n", done.File, what, verb)
	if len(done.Dropped) > 0 {
		fmt.Fprintf(a.stderr, "kofarm: %s: dropped, as it would no longer hold: %s\n", done.File, strings.Join(done.Dropped, ", "))
	}
}

// fileSigner does one thing to the modules in files.
type fileSigner struct {
	change func(ctx context.Context, module []byte) ([]byte, error)
	verb   string // in the past tense
	write  bool
	output string    // a folder; "": in place
	rpms   *sign.Key // signs RPMs; nil: they stay without
}

func (f signFlags) signer(ctx context.Context) (*fileSigner, error) {
	if f.strip {
		return f.stripper()
	}
	hash := modsign.Hash(f.hash)
	if f.hash == matrix.KernelsHash {
		hash = ""
	} else if _, err := modsign.ParseHash(f.hash); err != nil {
		return nil, fmt.Errorf("--hash: %w", err)
	}
	if f.verify && f.source.Certificate != "" && f.farm == "" {
		cert, err := modsign.ReadCertificate(f.source.Certificate)
		if err != nil {
			return nil, err
		}
		return &fileSigner{verb: "verified", change: func(_ context.Context, module []byte) ([]byte, error) {
			return module, modsign.Verify(module, cert)
		}}, nil
	}
	key, rpms, err := f.keys(ctx)
	if err != nil {
		return nil, err
	}
	if f.verify {
		return &fileSigner{verb: "verified", change: func(_ context.Context, module []byte) ([]byte, error) {
			return module, key.Check(module)
		}}, nil
	}
	return &fileSigner{verb: "signed", write: true, output: f.output, rpms: rpms,
		change: func(ctx context.Context, module []byte) ([]byte, error) {
			return key.Sign(ctx, module, hashFor(module, hash))
		}}, nil
}

// hashFor is the hash that is asked for, or else that of a module's present
// signature, or else sha256.
func hashFor(module []byte, asked modsign.Hash) modsign.Hash {
	if asked != "" {
		return asked
	}
	if s, _, err := kmod.ReadSignature(bytes.NewReader(module), int64(len(module))); err == nil && s != nil {
		if hash, err := modsign.ParseHash(s.Hash); err == nil {
			return hash
		}
	}
	return modsign.SHA256
}

func (f signFlags) stripper() (*fileSigner, error) {
	s := &fileSigner{verb: "stripped of signatures", write: true, output: f.output,
		change: func(_ context.Context, module []byte) ([]byte, error) { return modsign.Strip(module) }}
	if f.farm == "" {
		return s, nil
	}
	farm, err := readFarm(f.farm)
	if err == nil {
		s.rpms, err = packageKey(farm, filepath.Dir(f.farm))
	}
	return s, err
}

// keys loads the keys that flags or the farm file name.
func (f signFlags) keys(ctx context.Context) (*modsign.Key, *sign.Key, error) {
	named := f.source.Key != "" || f.source.KeyEnv != "" || f.source.PKCS11 != "" || len(f.source.Command) > 0
	if named {
		key, err := modsign.Load(f.source)
		if err != nil || f.farm == "" {
			return key, nil, err
		}
		farm, err := readFarm(f.farm)
		if err != nil {
			return nil, nil, err
		}
		rpms, err := packageKey(farm, filepath.Dir(f.farm))
		return key, rpms, err
	}
	file := f.farm
	if file == "" {
		file = "farm.yaml"
	}
	farm, err := readFarm(file)
	if err != nil {
		return nil, nil, err
	}
	if farm.Output.SignModules == nil {
		return nil, nil, fmt.Errorf("%s has no output.sign-modules; add it, or name a key: --key, --key-env, --pkcs11 or --command", file)
	}
	key, err := x509Key(ctx, file, filepath.Dir(file), farm.Output.SignModules, "")
	if err != nil {
		return nil, nil, err
	}
	rpms, err := packageKey(farm, filepath.Dir(file))
	return key, rpms, err
}

func readFarm(file string) (*matrix.Farm, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the farm file: %w", err)
	}
	f, _, err := matrix.Parse(file, data)
	return f, err
}

// file does it to one file.
func (s *fileSigner) file(ctx context.Context, name string, kind resign.Kind) (*signed, error) {
	in, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer in.Close() // only read
	change := func(_ string, module []byte) ([]byte, error) { return s.change(ctx, module) }
	if !s.write {
		found, err := resign.Rewrite(io.Discard, in, kind, change)
		return outcome(name, found, err)
	}
	target := name
	if s.output != "" {
		target = filepath.Join(s.output, filepath.Base(name))
		if err := os.MkdirAll(s.output, 0o755); err != nil {
			return nil, err
		}
	}
	out, err := os.CreateTemp(filepath.Dir(target), images.TempPrefix+"*")
	if err != nil {
		return nil, err
	}
	done, err := s.into(out, in, name, kind, change)
	err = errors.Join(err, out.Chmod(0o644), out.Close())
	if err == nil {
		done.File = target
		err = os.Rename(out.Name(), target)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(out.Name()))
	}
	return done, nil
}

func (s *fileSigner) into(out, in *os.File, name string, kind resign.Kind, change resign.Change) (*signed, error) {
	found, err := resign.Rewrite(out, in, kind, change)
	done, err := outcome(name, found, err)
	if err != nil {
		return nil, err
	}
	if len(done.Modules) == 0 { // a meta package, say: it stays as it is, signature and all
		done.Dropped = nil
		if err := copyOver(out, in); err != nil {
			return nil, err
		}
	}
	if len(done.Modules) > 0 && kind == resign.RPM && s.rpms != nil {
		if err := signAgain(out, s.rpms); err != nil {
			return nil, fmt.Errorf("signing the package: %w", err)
		}
		done.Dropped = nil
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	h := sha256.New()
	_, err = io.Copy(h, out)
	done.SHA256 = hex.EncodeToString(h.Sum(nil))
	return done, err
}

// copyOver makes a file the copy of another.
func copyOver(out, in *os.File) error {
	for _, f := range []*os.File{out, in} {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	if err := out.Truncate(0); err != nil {
		return err
	}
	_, err := io.Copy(out, in)
	return err
}

// signAgain gives an RPM a signature of its header.
func signAgain(f *os.File, key *sign.Key) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := repo.SignRPM(&b, f, st.Size(), key, time.Unix(0, 0)); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(b.Bytes(), 0)
	return err
}

func outcome(name string, found *resign.Found, err error) (*signed, error) {
	if err != nil {
		return nil, err
	}
	modules := append([]string{}, found.Modules...)
	if len(modules) == 1 && modules[0] == "" {
		modules[0] = filepath.Base(name)
	}
	return &signed{File: name, Modules: modules, Dropped: found.Dropped}, nil
}
