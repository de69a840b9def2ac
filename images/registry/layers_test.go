package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/kofarm/kofarm/images/store"
)

const layerName = "packages-of-a-test"

// saveLayer puts a layer into a store.
func saveLayer(t testing.TB, s *store.Store, data string) (zipped []byte, diffID v1.Hash) {
	t.Helper()
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	_, err := zip.Write([]byte(data))
	if err == nil {
		err = zip.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Put(b.Bytes(), types.OCILayer)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(data))
	diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	if _, err := s.NewLayer(layerName, d.Digest, d.Size, diffID); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), diffID
}

// layersOf gives a store's view of a registry, and what is logged.
func layersOf(t testing.TB, s *store.Store, host string, write bool) (*Layers, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	return newCache(t, s, host+"/farm").Layers(write, slog.New(slog.NewTextHandler(&log, nil))), &log
}

func TestLayers(t *testing.T) {
	host := serve(t, memory())
	a, b := openStore(t), openStore(t)
	_, diffID := saveLayer(t, a, strings.Repeat("a file\n", 1000))
	reader, log := layersOf(t, b, host, false)
	if reader.Find(t.Context(), layerName) {
		t.Fatal("found a layer in an empty registry")
	}
	refused, _ := layersOf(t, a, host, false)
	refused.Offer(t.Context(), layerName)
	if reader.Find(t.Context(), layerName) {
		t.Fatal("a cache that is only read was written to")
	}
	writer, log2 := layersOf(t, a, host, true)
	writer.Offer(t.Context(), layerName)
	writer.Offer(t.Context(), layerName)
	if !reader.Find(t.Context(), layerName) {
		t.Fatalf("the layer is not found: %s%s", log, log2)
	}
	want, err := a.Layer(layerName)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.Layer(layerName)
	if err != nil {
		t.Fatal(err)
	}
	gd, _ := got.Digest()
	wd, _ := want.Digest()
	if id, _ := got.DiffID(); id != diffID || gd != wd {
		t.Errorf("got diffID %s, digest %s, want %s, %s", id, gd, diffID, wd)
	}
	if log.Len()+log2.Len() > 0 {
		t.Errorf("logged: %s%s", log, log2)
	}
}

// TestLayersDamaged has a registry hold what is no such layer. The diffID that
// the registry tells does not count.
func TestLayersDamaged(t *testing.T) {
	zipped, right := saveLayer(t, openStore(t), "files")
	two, err := mutate.AppendLayers(empty.Image, static.NewLayer(zipped, types.OCILayer), static.NewLayer([]byte("x"), types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := mutate.AppendLayers(empty.Image, static.NewLayer([]byte("not compressed"), types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	lying, err := mutate.AppendLayers(empty.Image, static.NewLayer(zipped, types.OCILayer)) // its diffID is that of the compressed bytes
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		img  v1.Image
		find bool
	}{
		"two layers": {two, false}, "not compressed": {plain, false}, "wrong diffID": {lying, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			l, log := layersOf(t, s, serve(t, memory()), true)
			img := mutate.ConfigMediaType(mutate.MediaType(tt.img, types.OCIManifestSchema1), types.OCIConfigJSON)
			if err := l.cache.pusher.Push(t.Context(), l.cache.repo.Tag(layerName), img); err != nil {
				t.Fatal(err)
			}
			if got := l.Find(t.Context(), layerName); got != tt.find {
				t.Fatalf("found %t, want %t: %s", got, tt.find, log)
			}
			layer, err := s.Layer(layerName)
			if !tt.find {
				if err == nil || !strings.Contains(log.String(), "damaged layer") {
					t.Errorf("the layer is there, or nothing is said: %v, %q", err, log)
				}
				return
			}
			if id, _ := layer.DiffID(); err != nil || id != right {
				t.Errorf("diffID %s, want %s, %v", id, right, err)
			}
		})
	}
}

// TestLayersGivenUp has a registry that fails: it is asked three times.
func TestLayersGivenUp(t *testing.T) {
	asked := map[string]bool{}
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			asked[r.URL.Path] = true
		}
		if r.URL.Path == "/v2/" {
			return
		}
		http.Error(w, "no", http.StatusForbidden)
	}))
	l, log := layersOf(t, openStore(t), host, true)
	for i := range 6 {
		if l.Find(t.Context(), fmt.Sprint(layerName, i)) {
			t.Fatal("found")
		}
	}
	if len(asked) != maxFaults || strings.Count(log.String(), "level=WARN") != maxFaults || !strings.Contains(log.String(), "not asked for layers again") {
		t.Errorf("asked for %d layers, log:\n%s", len(asked), log)
	}
}

// TestLayersBlobDamaged has a registry whose blob's bytes are others.
func TestLayersBlobDamaged(t *testing.T) {
	dir := t.TempDir()
	a := openStore(t)
	zipped, _ := saveLayer(t, a, "files")
	inner := memory()
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat(filepath.Join(dir, "damage")); err == nil && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			w.Header().Set("Content-Length", fmt.Sprint(len(zipped)))
			_, _ = w.Write(bytes.Repeat([]byte("x"), len(zipped)))
			return
		}
		inner.ServeHTTP(w, r)
	}))
	writer, _ := layersOf(t, a, host, true)
	writer.Offer(t.Context(), layerName)
	if err := os.WriteFile(filepath.Join(dir, "damage"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	reader, log := layersOf(t, openStore(t), host, false)
	if reader.Find(t.Context(), layerName) || !strings.Contains(log.String(), "damaged layer") {
		t.Errorf("found a damaged layer, or nothing is said: %s", log)
	}
}
