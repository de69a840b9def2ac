package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kofarm/kofarm/images/store"
)

// repositories are the names under which a store is served, and the kind of
// ref that each one's tags are.
var repositories = map[string]string{"results": "result", "images": "image"}

// maxManifest is the largest manifest in bytes that is served or taken: four
// times what registries must accept (distribution-spec v1.1, "Pushing
// Manifests"), as a result may have thousands of modules.
const maxManifest = 16 << 20

// Handler serves a store by the pull half of the OCI distribution API: the
// repository "results" holds the results of cells, each tagged with its key,
// and "images" the images, and both what refers to them. Blobs are found by
// digest in either, whatever they are. It writes nothing.
type Handler struct{ Store *store.Store }

// tagRegexp is what may be a tag (distribution-spec v1.1, "Pulling manifests").
var tagRegexp = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// apiError is an error as the specification writes it ("Error Codes").
type apiError struct {
	status        int
	code, message string
}

func (e *apiError) Error() string { return e.message }

func unknown(code, what string) error {
	return &apiError{http.StatusNotFound, code, what + " is not in the store"}
}

// ServeHTTP implements [http.Handler].
func (h Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	err := h.serve(w, r)
	if err == nil {
		return
	}
	e := &apiError{http.StatusInternalServerError, "UNKNOWN", "the store cannot be read"}
	_ = errors.As(err, &e)
	body, err := json.Marshal(map[string]any{"errors": []map[string]string{{"code": e.code, "message": e.message}}})
	if err != nil {
		body = nil
	}
	send(w, e.status, "application/json", body)
}

// serve finds the endpoint: /v2/, or /v2/<repository>/<what>/<which>.
func (h Handler) serve(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return &apiError{http.StatusMethodNotAllowed, "UNSUPPORTED", "the store is served read-only"}
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if ok && rest == "" {
		send(w, http.StatusOK, "application/json", []byte("{}"))
		return nil
	}
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return &apiError{http.StatusNotFound, "UNSUPPORTED", "there is no such endpoint"}
	}
	kind, ok := repositories[parts[0]]
	if !ok {
		return &apiError{http.StatusNotFound, "NAME_UNKNOWN", "there are the repositories results and images"}
	}
	switch {
	case parts[1] == "manifests":
		return h.manifest(w, kind, parts[2])
	case parts[1] == "blobs":
		return h.blob(w, r, parts[2])
	case parts[1] == "referrers":
		return h.referrers(w, r, parts[2])
	case parts[1] == "tags" && parts[2] == "list":
		return h.tags(w, r, parts[0], kind)
	}
	return &apiError{http.StatusNotFound, "UNSUPPORTED", "there is no such endpoint"}
}

// send answers with a whole body. net/http leaves it out for HEAD.
func send(w http.ResponseWriter, status int, mediaType string, body []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client has gone, or not
}

// manifest serves a manifest by tag or digest.
func (h Handler) manifest(w http.ResponseWriter, kind, reference string) error {
	digest, err := v1.NewHash(reference)
	if err != nil {
		d, err := h.Store.Ref(kind, reference)
		if err != nil {
			return unknown("MANIFEST_UNKNOWN", "manifest "+strconv.Quote(reference))
		}
		digest = d.Digest
	}
	data, err := h.Store.Get(digest, maxManifest)
	var m v1.Manifest
	if err != nil || json.Unmarshal(data, &m) != nil || !manifestType(m.MediaType) {
		return unknown("MANIFEST_UNKNOWN", "manifest "+strconv.Quote(reference))
	}
	w.Header().Set("Docker-Content-Digest", digest.String())
	send(w, http.StatusOK, string(m.MediaType), data)
	return nil
}

func manifestType(t types.MediaType) bool {
	return t == types.OCIManifestSchema1 || t == types.OCIImageIndex
}

// blob serves a blob, whole or a range of it. It is for the client to check its
// digest, as it would with any registry.
func (h Handler) blob(w http.ResponseWriter, r *http.Request, reference string) error {
	digest, err := v1.NewHash(reference)
	if err != nil {
		return &apiError{http.StatusBadRequest, "DIGEST_INVALID", strconv.Quote(reference) + " is no digest"}
	}
	f, err := h.Store.OpenFile(digest)
	if err != nil {
		return unknown("BLOB_UNKNOWN", "blob "+digest.String())
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", digest.String())
	w.Header().Set("ETag", strconv.Quote(digest.String()))
	http.ServeContent(w, r, "", time.Time{}, f)
	return nil
}

// tags lists a repository's tags in order, from the one after "last", and at
// most "n" of them (distribution-spec v1.1, "Listing Tags").
func (h Handler) tags(w http.ResponseWriter, r *http.Request, name, kind string) error {
	tags, err := h.Store.Refs(kind)
	if err != nil {
		return err
	}
	tags = slices.DeleteFunc(append([]string{}, tags...), func(t string) bool { return !tagRegexp.MatchString(t) })
	if last := r.URL.Query().Get("last"); last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	if limit := r.URL.Query().Get("n"); limit != "" {
		n, err := strconv.Atoi(limit)
		if err != nil || n < 0 {
			return &apiError{http.StatusBadRequest, "UNSUPPORTED", "n is no number of tags"}
		}
		if n < len(tags) {
			tags = tags[:n]
			if n > 0 {
				w.Header().Set("Link", fmt.Sprintf(`</v2/%s/tags/list?n=%d&last=%s>; rel="next"`, name, n, tags[n-1]))
			}
		}
	}
	body, err := json.Marshal(struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{name, tags})
	if err != nil {
		return err
	}
	send(w, http.StatusOK, "application/json", body)
	return nil
}
