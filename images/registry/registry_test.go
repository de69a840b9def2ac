package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kofarm/kofarm/images/store"
)

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// kind is the kind of the refs that the tests' results have.
const kind = "result"

var (
	key      = strings.Repeat("0123456789abcdef", 4)
	contents = []string{`{"version":1}`, "a module", strings.Repeat("a log\n", 1000)}
)

// save puts a result into a store: a manifest, its config and two blobs.
func save(t testing.TB, s *store.Store, key string) v1.Descriptor {
	t.Helper()
	var blobs []v1.Descriptor
	for i, data := range contents {
		d, err := s.Put([]byte(data), types.MediaType(fmt.Sprintf("application/vnd.test.%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, d)
	}
	data, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: blobs[0], Layers: blobs[1:]})
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Put(data, types.OCIManifestSchema1)
	if err == nil {
		err = s.SetRef(kind, key, d)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// holds fails the test unless the store has the whole result.
func holds(t testing.TB, s *store.Store, want v1.Descriptor) {
	t.Helper()
	got, err := s.Ref(kind, key)
	if err != nil || got.Digest != want.Digest {
		t.Fatalf("got %v, %v, want %s", got.Digest, err, want.Digest)
	}
	data, err := s.Get(got.Digest, maxManifest)
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	for i, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if data, err := s.Get(d.Digest, d.Size); err != nil || string(data) != contents[i] {
			t.Errorf("blob %d: got %q, %v", i, data, err)
		}
	}
}

func serve(t testing.TB, h http.Handler) (host string) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// memory is a registry that takes what it is given.
func memory() http.Handler { return registry.New(registry.Logger(log.New(io.Discard, "", 0))) }

func newCache(t testing.TB, s *store.Store, repository string) *Cache {
	t.Helper()
	c, err := NewCache(s, kind, repository, false)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestServe(t *testing.T) {
	s := openStore(t)
	want := save(t, s, key)
	host := serve(t, Handler{s})
	get := func(method, path string, header ...string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+host+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(header) > 0 {
			r.Header.Set(header[0], header[1])
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	blob := "/v2/results/blobs/sha256:9a93ea9c31b8dca8e3e7d8d5cab0ebb75b29ef6c9ffe14e0d9cab6ff8e6a4f9e"
	module, err := s.Put([]byte(contents[1]), types.OCILayer)
	if err != nil {
		t.Fatal(err)
	}
	missing := blob
	blob = "/v2/results/blobs/" + module.Digest.String()
	tests := []struct {
		method, path, rangeHeader string
		status                    int
		body                      string
	}{
		{"GET", "/v2/", "", 200, "{}"},
		{"HEAD", "/v2/", "", 200, ""},
		{"GET", blob, "", 200, "a module"},
		{"GET", blob, "bytes=2-", 206, "module"},
		{"GET", blob, "bytes=0-0", 206, "a"},
		{"GET", blob, "bytes=100-", 416, ""},
		{"HEAD", blob, "", 200, ""},
		{"GET", missing, "", 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/results/blobs/sha256:..", "", 400, "DIGEST_INVALID"},
		{"GET", "/v2/results/manifests/" + key, "", 200, "manifest.v1+json"},
		{"HEAD", "/v2/results/manifests/" + key, "", 200, ""},
		{"GET", "/v2/results/manifests/" + want.Digest.String(), "", 200, "manifest.v1+json"},
		{"GET", "/v2/results/manifests/" + module.Digest.String(), "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/results/manifests/latest", "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/results/manifests/..%2f..%2fx", "", 404, "UNSUPPORTED"},
		{"GET", "/v2/layers/manifests/x", "", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/images/tags/list", "", 200, `"tags":[]`},
		{"GET", "/v2/results/tags/list", "", 200, key},
		{"GET", "/v2/results/tags/list?n=x", "", 400, "UNSUPPORTED"},
		{"GET", "/v2/results/referrers/" + want.Digest.String(), "", 200, `"manifests":[]`},
		{"GET", "/v2/results/elsewhere/" + want.Digest.String(), "", 404, "UNSUPPORTED"},
		{"POST", "/v2/results/blobs/uploads/", "", 405, "UNSUPPORTED"},
		{"PUT", "/v2/results/manifests/x", "", 405, "UNSUPPORTED"},
		{"DELETE", "/v2/results/manifests/" + key, "", 405, "UNSUPPORTED"},
		{"GET", "/", "", 404, "UNSUPPORTED"},
	}
	for _, tt := range tests {
		resp := get(tt.method, tt.path, "Range", tt.rangeHeader)
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != tt.status || !strings.Contains(string(body), tt.body) {
			t.Errorf("%s %s %s: got %d %q, %v, want %d %q", tt.method, tt.path, tt.rangeHeader, resp.StatusCode, body, err, tt.status, tt.body)
		}
		if tt.method == "HEAD" && (len(body) > 0 || resp.ContentLength <= 0) {
			t.Errorf("HEAD %s: %d bytes, length %d", tt.path, len(body), resp.ContentLength)
		}
	}
}

func TestTagsInPages(t *testing.T) {
	s := openStore(t)
	var want []string
	for i := range 7 {
		tag := fmt.Sprintf("tag-%d", i)
		save(t, s, tag)
		want = append(want, tag)
	}
	save(t, s, "no+tag")
	host := serve(t, Handler{s})
	repo, err := name.NewRepository(host + "/results")
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, 2, 7, 100} {
		got, err := remote.List(repo, remote.WithPageSize(size))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("pages of %d: got %q, %v, want %q", size, got, err, want)
		}
	}
}

// TestServeImage has two clients read a whole image: go-containerregistry's, and
// skopeo.
func TestServeImage(t *testing.T) {
	s := openStore(t)
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	const gz = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00" // an empty archive
	if _, err := io.WriteString(w, gz); err != nil {
		t.Fatal(err)
	}
	digest, size, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	emptySum, err := v1.NewHash("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	if err != nil {
		t.Fatal(err)
	}
	layer, err := s.NewLayer("empty", digest, size, emptySum)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layer)
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.PutImage("tool", img)
	if err != nil {
		t.Fatal(err)
	}
	host := serve(t, Handler{s})
	ref, err := name.ParseReference(host + "/images:tool")
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := got.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatal(layers, err)
	}
	r, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); err != nil || string(data) != gz {
		t.Errorf("layer: %q, %v", data, err)
	}

	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "skopeo", "--insecure-policy", "copy", "--src-tls-verify=false",
		"docker://"+host+"/images:tool", "oci:"+dir+":tool").CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo (Debian's package skopeo, see ci/setup): %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "blobs/sha256", want.Digest.Hex)); err != nil {
		t.Errorf("skopeo has copied another manifest: %v", err)
	}
}

// counting counts the uploads that a registry gets.
func counting(h http.Handler, uploads *atomic.Int32) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			uploads.Add(1)
		}
		h.ServeHTTP(w, r)
	})
}

func TestPushAndPull(t *testing.T) {
	var uploads atomic.Int32
	host := serve(t, counting(memory(), &uploads))
	from, to := openStore(t), openStore(t)
	want := save(t, from, key)

	err := newCache(t, to, host+"/team/kofarm").Pull(t.Context(), key)
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("pulling what nobody has pushed: %v", err)
	}
	out := newCache(t, from, host+"/team/kofarm")
	for range 2 {
		if err := out.Push(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if uploads.Load() != 3 { // the second time nothing is missing
			t.Errorf("%d uploads, want 3", uploads.Load())
		}
	}
	if err := newCache(t, to, host+"/team/kofarm").Pull(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	holds(t, to, want)
}

// TestPullFromStore has one machine serve its store and another use it as its
// cache.
func TestPullFromStore(t *testing.T) {
	from, to := openStore(t), openStore(t)
	want := save(t, from, key)
	c := newCache(t, to, serve(t, Handler{from})+"/results")
	for k, want := range map[string]bool{key: true, "none": false} {
		if got, err := c.Has(t.Context(), k); got != want || err != nil {
			t.Errorf("%s: got %t, %v, want %t", k, got, err, want)
		}
	}
	if err := c.Pull(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	holds(t, to, want)
}

// altered changes a registry's answers of blobs or manifests.
func altered(h http.Handler, part string, change func([]byte) []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/"+part+"/") {
			h.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		body := change(rec.Body.Bytes())
		w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
	})
}

func TestPoisoned(t *testing.T) {
	tests := []struct {
		name, part string
		change     func([]byte) []byte
	}{
		{"another byte", "blobs", func(b []byte) []byte { b = slices.Clone(b); b[0] ^= 1; return b }},
		{"truncated", "blobs", func(b []byte) []byte { return b[:len(b)/2] }},
		{"longer", "blobs", func(b []byte) []byte { return append(slices.Clone(b), 'x') }},
		{"empty", "blobs", func([]byte) []byte { return nil }},
		{"no JSON", "manifests", func([]byte) []byte { return []byte("{") }},
		{"an index", "manifests", func([]byte) []byte {
			return []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
		}},
		{"a blob that is too large", "manifests", func(b []byte) []byte {
			return []byte(strings.Replace(string(b), `"size":8`, `"size":99999999999`, 1))
		}},
		{"a blob that is not there", "manifests", func(b []byte) []byte {
			return []byte(strings.Replace(string(b), `"digest":"sha256:`, `"digest":"sha256:`+strings.Repeat("0", 64)+`","x":"`, 1))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mem := memory()
			from, to := openStore(t), openStore(t)
			save(t, from, key)
			if err := newCache(t, from, serve(t, mem)+"/kofarm").Push(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			err := newCache(t, to, serve(t, altered(mem, tt.part, tt.change))+"/kofarm").Pull(t.Context(), key)
			if !errors.Is(err, store.ErrDamaged) {
				t.Errorf("got %v, want ErrDamaged", err)
			}
			if _, err := to.Ref(kind, key); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("the store has it: %v", err)
			}
			left, err := os.ReadDir(to.TempDir())
			if err != nil || len(left) > 0 {
				t.Errorf("%v is left, %v", left, err)
			}
		})
	}
}

// TestCredentials takes them from the Docker config, and says what is wrong
// without them.
func TestCredentials(t *testing.T) {
	const password = "s3cret-of-ann"
	mem := memory()
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "ann" || pass != password {
			w.Header().Set("Www-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mem.ServeHTTP(w, r)
	}))
	tests := []struct {
		name, user, password string
		want                 error
	}{
		{"right", "ann", password, nil},
		{"wrong", "ann", password + "-not", ErrDenied},
		{"none", "", "", ErrDenied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("DOCKER_CONFIG", dir)
			config := "{}"
			if tt.user != "" {
				config = fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, host, tt.user, tt.password)
			}
			if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			s := openStore(t)
			save(t, s, key)
			c := newCache(t, s, host+"/kofarm")
			_, asked := c.Has(t.Context(), key)
			for _, err := range []error{asked, c.Push(t.Context(), key), c.Pull(t.Context(), key)} {
				if !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if err != nil && (strings.Contains(err.Error(), password) || !strings.Contains(err.Error(), "docker login "+host)) {
					t.Errorf("the message: %v", err)
				}
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	host := strings.TrimPrefix(srv.URL, "http://")
	srv.Close()
	err := newCache(t, openStore(t), host+"/kofarm").Pull(t.Context(), key)
	if err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), host) {
		t.Errorf("got %v", err)
	}
}
