package registry

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kofarm/kofarm/images/store"
)

// refer stores a manifest about another one.
func refer(t testing.TB, s *store.Store, subject v1.Descriptor, what, artifactType string) v1.Descriptor {
	t.Helper()
	put := func(data string, mediaType types.MediaType) v1.Descriptor {
		t.Helper()
		d, err := s.Put([]byte(data), mediaType)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	blob := put("a statement: "+what, types.MediaType(artifactType))
	data, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType,
		Config: put("{}", "application/vnd.oci.empty.v1+json"), Layers: []v1.Descriptor{blob}, Subject: &subject})
	if err != nil {
		t.Fatal(err)
	}
	d := put(string(data), types.OCIManifestSchema1)
	d.ArtifactType = artifactType
	if err := s.SetRef(referrerKind, subject.Digest.Hex+"-"+what, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// listed are the digests that a registry says refer to a manifest.
func listed(t testing.TB, server *httptest.Server, repo string, subject v1.Hash, filter ...remote.Option) []string {
	t.Helper()
	r, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://") + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(r.Digest(subject.String()), filter...)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, d := range m.Manifests {
		img, err := remote.Image(r.Digest(d.Digest.String()))
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatal(layers, err)
		}
		blob, err := layers[0].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(blob)
		if err != nil || !strings.HasPrefix(string(data), "a statement: ") {
			t.Errorf("%q, %v", data, err)
		}
		all = append(all, d.Digest.String())
	}
	slices.Sort(all)
	return all
}

func sorted(list ...v1.Descriptor) []string {
	var all []string
	for _, d := range list {
		all = append(all, d.Digest.String())
	}
	slices.Sort(all)
	return all
}

func TestReferrersAreServed(t *testing.T) {
	s := openStore(t)
	subject := save(t, s, key)
	a, b := refer(t, s, subject, "a", "application/a"), refer(t, s, subject, "b", "application/b")
	other := subject
	other.Digest.Hex = strings.Repeat("f", 64)
	refer(t, s, other, "a", "application/a")
	server := httptest.NewServer(Handler{s})
	t.Cleanup(server.Close)
	if got, want := listed(t, server, "results", subject.Digest), sorted(a, b); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := listed(t, server, "results", subject.Digest, remote.WithFilter("artifactType", "application/b")), sorted(b); !slices.Equal(got, want) {
		t.Errorf("filtered: got %q, want %q", got, want)
	}
	if got := listed(t, server, "results", v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}); len(got) > 0 {
		t.Errorf("to nothing %q refer", got)
	}
	for path, want := range map[string]int{"/v2/results/referrers/latest": http.StatusBadRequest, "/v2/nothing/referrers/" + subject.Digest.String(): http.StatusNotFound} {
		r, err := http.Get(server.URL + path)
		if err != nil || r.StatusCode != want {
			t.Errorf("%s: %v, %v, want %d", path, r, err, want)
			continue
		}
		r.Body.Close()
	}
}

// Registries with the referrers API and those without it list the same.
func TestAttach(t *testing.T) {
	for mode, options := range map[string][]registry.Option{
		"referrers API": {registry.WithReferrersSupport(true)}, "tags": nil,
	} {
		t.Run(mode, func(t *testing.T) {
			server := httptest.NewServer(registry.New(append(options, registry.Logger(log.New(io.Discard, "", 0)))...))
			t.Cleanup(server.Close)
			s := openStore(t)
			c, err := NewCache(s, kind, strings.TrimPrefix(server.URL, "http://")+"/farm", true)
			if err != nil {
				t.Fatal(err)
			}
			subject := save(t, s, key)
			a := refer(t, s, subject, "a", "application/a")
			if err := c.Attach(t.Context(), key); err != nil {
				t.Fatalf("to a registry without the result: %v", err)
			}
			if err := c.Push(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if got := listed(t, server, "farm", subject.Digest); len(got) > 0 {
				t.Errorf("without the result it has taken %q", got)
			}
			attach := func(want ...v1.Descriptor) {
				t.Helper()
				if err := c.Attach(t.Context(), key); err != nil {
					t.Fatal(err)
				}
				if got := listed(t, server, "farm", subject.Digest); !slices.Equal(got, sorted(want...)) {
					t.Errorf("got %q, want %q", got, sorted(want...))
				}
			}
			attach(a)
			attach(a)
			attach(a, refer(t, s, subject, "b", "application/b"))
			// Another result of the key is not ours to speak about.
			contents = append(contents, "more")
			defer func() { contents = contents[:3] }()
			other := save(t, s, key)
			refer(t, s, other, "a", "application/a")
			if err := c.Attach(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if got := listed(t, server, "farm", other.Digest); len(got) > 0 {
				t.Errorf("about another result it has taken %q", got)
			}
		})
	}
}
