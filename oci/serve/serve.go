// Package serve is a read-only registry over image layouts: how a guest pulls
// an image that is on its host. It gives out nothing but what the layouts
// hold, under the repositories that it was made for.
package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
)

// Source is what a repository is served from. A *layout.Layout is one.
type Source interface {
	oci.Fetcher
}

var _ Source = (*layout.Layout)(nil)

// The paths of the OCI distribution specification v1.1, end-2 and end-3.
var contentPath = regexp.MustCompile(`^/v2/([a-z0-9._/-]{1,255})/(manifests|blobs)/([A-Za-z0-9._:-]{1,160})$`)

// handler serves the pull part of the distribution API.
type handler struct {
	repositories map[string]Source
}

// Handler makes the http.Handler. The keys are repositories as they stand in
// references below the registry, such as "library/debian".
func Handler(repositories map[string]Source) http.Handler {
	return &handler{repositories: repositories}
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
		return
	}
	if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
		return
	}
	match := contentPath.FindStringSubmatch(r.URL.Path)
	if match == nil {
		fail(w, http.StatusNotFound, "UNSUPPORTED", "no such path")
		return
	}
	source, ok := h.repositories[match[1]]
	if !ok {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "repository not known to registry")
		return
	}
	if match[2] == "manifests" {
		h.manifest(w, r, source, match[3])
	} else {
		h.blob(w, r, source, match[3])
	}
}

func (h *handler) manifest(w http.ResponseWriter, r *http.Request, source Source, name string) {
	var ref oci.Reference
	if digest, err := oci.ParseDigest(name); err == nil {
		ref.Digest = digest
	} else if err := oci.CheckTag(name); err == nil {
		ref.Tag = name
	} else {
		fail(w, http.StatusBadRequest, "MANIFEST_INVALID", "expected a tag or a digest")
		return
	}
	d, err := source.Resolve(r.Context(), ref)
	if err != nil {
		failWith(w, err, "MANIFEST_UNKNOWN")
		return
	}
	data, err := oci.ReadAll(r.Context(), source, d, oci.MaxDocument)
	if err != nil {
		failWith(w, err, "MANIFEST_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", d.MediaType)
	w.Header().Set("Docker-Content-Digest", string(d.Digest))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (h *handler) blob(w http.ResponseWriter, r *http.Request, source Source, name string) {
	digest, err := oci.ParseDigest(name)
	if err != nil {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", "expected a digest")
		return
	}
	rc, err := source.Fetch(r.Context(), oci.Descriptor{Digest: digest})
	if err != nil {
		failWith(w, err, "BLOB_UNKNOWN")
		return
	}
	defer func() { _ = rc.Close() }()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", string(digest))
	if seeker, ok := rc.(io.ReadSeeker); ok {
		http.ServeContent(w, r, "", time.Time{}, seeker) // with ranges, and sendfile for files
		return
	}
	if r.Method == http.MethodGet {
		_, _ = io.Copy(w, rc)
	}
}

func failWith(w http.ResponseWriter, err error, code string) {
	if errors.Is(err, oci.ErrNotFound) {
		fail(w, http.StatusNotFound, code, "not found")
		return
	}
	// The cause may hold paths of this machine, which are not the guest's
	// business.
	fail(w, http.StatusInternalServerError, "UNKNOWN", "the image layout cannot be read")
}

// fail writes an error in the form of the specification.
func fail(w http.ResponseWriter, status int, code, message string) {
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct {
		Errors []entry `json:"errors"`
	}{[]entry{{code, message}}})
}
