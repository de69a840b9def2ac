package farm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/worker"
)

// ResultRef is the kind of the refs that name records: a cell's key → its record.
const ResultRef = "result"

// The kinds of refs that a farm keeps in its store.
const (
	resultRef = ResultRef
	packRef   = "pack" // a package's key → the package
)

// Media types of the blobs of a record.
const (
	recordType  types.MediaType = "application/vnd.kofarm.result.v1+json"
	moduleType  types.MediaType = "application/vnd.kofarm.module.v1"
	symversType types.MediaType = "application/vnd.kofarm.symvers.v1"
	filesType   types.MediaType = "application/vnd.kofarm.files.v1.tar"
	logType     types.MediaType = "application/vnd.kofarm.log.v1+gzip"
)

// titleKey names a blob of a manifest (OCI image-spec, annotations).
const titleKey = "org.opencontainers.image.title"

// keyAnnotation is the annotation of a record's manifest that holds its cell's key.
const keyAnnotation = "dev.kofarm.key"

// Limits on what is read back from a store that others may write to.
const (
	maxManifest = 16 << 20
	maxModule   = 1 << 30
	maxLog      = 1 << 30
)

// recordVersion numbers the form of a Record.
const recordVersion = 1

// Record is what the store keeps of a finished build.
type Record struct {
	Version    int      `json:"version"`
	Outcome    Outcome  `json:"outcome"` // Built, Excluded or Failed
	Phase      string   `json:"phase,omitzero"`
	Message    string   `json:"message,omitzero"`
	FirstError string   `json:"firstError,omitzero"` // the log's first line that looks like an error
	DKMSExit   int      `json:"dkmsExit,omitzero"`
	Compiler   string   `json:"compiler,omitzero"`
	Unsteady   string   `json:"unsteady,omitzero"` // why DKMS may name other modules elsewhere
	Seconds    float64  `json:"seconds"`
	MemoryPeak int64    `json:"memoryPeak,omitzero"` // bytes, 0 if unknown
	Modules    []Module `json:"modules,omitzero"`
	Symvers    *Blob    `json:"symvers,omitzero"`
	Installed  *Blob    `json:"installed,omitzero"` // a tar of user-space files
	Tree       *Blob    `json:"tree,omitzero"`      // a tar of what is for modules that are built upon it
	Log        Blob     `json:"log"`                // gzip
	Check      Checked  `json:"check"`
}

// Module is one built module in the store.
type Module struct {
	Name     string `json:"name"` // file name, with .ko
	Location string `json:"location,omitzero"`
	Blob
}

// Blob names content in the store.
type Blob struct {
	SHA256 string `json:"sha256"` // hex
	Size   int64  `json:"size"`   // bytes
}

func (b Blob) hash() v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: b.SHA256} }

func blobOf(d v1.Descriptor) Blob { return Blob{SHA256: d.Digest.Hex, Size: d.Size} }

// Checked is the farm's own judgement of the built modules.
type Checked struct {
	// Format numbers the checks that were made; 0: none.
	Format   int       `json:"format"`
	Problems []Problem `json:"problems,omitzero"`
	// Unchecked are kinds of problems that were not looked for.
	Unchecked []kmod.Kind `json:"unchecked,omitzero"`
}

// Problem is one finding about one module.
type Problem struct {
	Module string    `json:"module"` // file name
	Kind   kmod.Kind `json:"kind"`
	Detail string    `json:"detail"`
}

// String tells the problem in one line.
func (p Problem) String() string { return fmt.Sprintf("%s: %s: %s", p.Module, p.Kind, p.Detail) }

// Reasons tells why the build has failed or was excluded, or what is wrong with
// its modules: each in one line, none if all is well.
func (rec *Record) Reasons() []string {
	if rec.Outcome != Built {
		return []string{rec.Phase + ": " + rec.Message}
	}
	var why []string
	for _, p := range rec.Check.Problems {
		why = append(why, p.String())
	}
	return why
}

// records keeps records in a store, each as an OCI manifest whose config is the
// record and whose layers are its blobs, so that a registry can hold it too.
type records struct{ s *store.Store }

// load finds a cell's record. Where it or one of its blobs is missing or
// damaged, the error is store.ErrNotFound: the cell has to be built again.
func (r records) load(key string) (*Record, error) {
	d, err := r.s.Ref(resultRef, key)
	if err != nil {
		return nil, err
	}
	data, err := r.s.Get(d.Digest, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", store.ErrNotFound, err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", store.ErrNotFound, err)
	}
	if m.Annotations[keyAnnotation] != key {
		return nil, fmt.Errorf("result %s is another cell's: %w", key, store.ErrNotFound)
	}
	var rec Record
	if err := r.s.GetJSON(m.Config.Digest, maxManifest, &rec); err != nil {
		return nil, fmt.Errorf("%w (%w)", store.ErrNotFound, err)
	}
	if rec.Version != recordVersion {
		return nil, fmt.Errorf("result %s is of another form: %w", key, store.ErrNotFound)
	}
	if err := r.complete(&rec); err != nil {
		return nil, fmt.Errorf("result %s: %w (%w)", key, store.ErrNotFound, err)
	}
	return &rec, nil
}

// judged is load of a record whose modules have had all the checks that are made
// now; of others the error is store.ErrNotFound, too.
func (r records) judged(key string) (*Record, error) {
	rec, err := r.load(key)
	if err == nil && rec.Outcome != Failed && rec.Check.Format != checkFormat {
		return nil, fmt.Errorf("result %s was checked by another version: %w", key, store.ErrNotFound)
	}
	return rec, err
}

// complete says what is wrong with a record that may be anyone's: it comes from
// a store or a registry that others write to.
func (r records) complete(rec *Record) error {
	for _, m := range rec.Modules {
		name, ok := strings.CutSuffix(m.Name, ".ko")
		if !ok {
			return fmt.Errorf("%q is no module", m.Name)
		}
		if err := worker.CheckModuleName(name); err != nil {
			return err
		}
	}
	for _, l := range rec.layers() {
		if !r.s.Has(l.Digest, l.Size) {
			return fmt.Errorf("blob %s is missing", l.Digest)
		}
	}
	return nil
}

// save stores a record whose blobs are there already.
func (r records) save(key string, rec *Record) error {
	rec.Version = recordVersion
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	config, err := r.s.Put(data, recordType)
	if err != nil {
		return err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config,
		Layers: rec.layers(), Annotations: map[string]string{keyAnnotation: key}}
	data, err = json.Marshal(m)
	if err != nil {
		return err
	}
	d, err := r.s.Put(data, types.OCIManifestSchema1)
	if err != nil {
		return err
	}
	return r.s.SetRef(resultRef, key, d)
}

// layers are the record's blobs as an OCI manifest lists them.
func (rec *Record) layers() []v1.Descriptor {
	layer := func(b Blob, t types.MediaType, title string) v1.Descriptor {
		return v1.Descriptor{MediaType: t, Digest: b.hash(), Size: b.Size, Annotations: map[string]string{titleKey: title}}
	}
	ls := []v1.Descriptor{}
	for _, m := range rec.Modules {
		ls = append(ls, layer(m.Blob, moduleType, m.Name))
	}
	if rec.Symvers != nil {
		ls = append(ls, layer(*rec.Symvers, symversType, "Module.symvers"))
	}
	if rec.Installed != nil {
		ls = append(ls, layer(*rec.Installed, filesType, "files.tar"))
	}
	if rec.Tree != nil {
		ls = append(ls, layer(*rec.Tree, filesType, "tree.tar"))
	}
	return append(ls, layer(rec.Log, logType, "make.log.gz"))
}

// module reads a module's bytes.
func (r records) module(m Module) ([]byte, error) { return r.s.Get(m.hash(), maxModule) }

// parsed reads what a stored module says of itself.
func (r records) parsed(m Module) (*kmod.Module, error) {
	f, err := r.s.OpenVerified(m.hash())
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	k, err := kmod.ReadAt(f, m.Size, kmod.Limits{PlainOnly: true})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name, err)
	}
	return k, nil
}

// logWriter stores a log, compressed, while it is written. commit or abort ends
// it.
type logWriter struct {
	*gzip.Writer
	blob *store.Writer
}

func newLog(s *store.Store) (*logWriter, error) {
	blob, err := s.Create()
	if err != nil {
		return nil, err
	}
	return &logWriter{gzip.NewWriter(blob), blob}, nil
}

func (l *logWriter) commit() (Blob, error) {
	if err := l.Close(); err != nil {
		return Blob{}, errors.Join(err, l.abort())
	}
	digest, size, err := l.blob.Commit()
	return Blob{SHA256: digest.Hex, Size: size}, err
}

func (l *logWriter) abort() error { return l.blob.Abort() }

// log opens a log.
func (r records) log(b Blob) (io.ReadCloser, error) {
	blob, err := r.s.Open(b.hash())
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(blob)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("log %s: %w", b.SHA256, err), blob.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(z, maxLog), blob}, nil
}

// firstError finds the first error that a stored log tells of.
func (r records) firstError(b Blob) (string, error) { return r.find(b, firstError) }

// lastPhase finds in which phase a stored log ends, as the end of a sentence; ""
// where it has none.
func (r records) lastPhase(b Blob) (string, error) { return r.find(b, lastPhase) }

func (r records) find(b Blob, in func(io.Reader) (string, error)) (_ string, err error) {
	log, err := r.log(b)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	return in(log)
}

func sha256hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
