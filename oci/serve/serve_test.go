package serve_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/oci/serve"
)

func newServer(t *testing.T) (*httptest.Server, *layout.Layout, oci.Descriptor, oci.Descriptor) {
	t.Helper()
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	blob, err := oci.PushBytes(t.Context(), l, oci.MediaTypeLayer, []byte("0123456789"))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := oci.PushBytes(t.Context(), l, oci.MediaTypeManifest, fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q}`, oci.MediaTypeManifest))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), manifest, "v1"); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(serve.Handler(map[string]serve.Source{"local/web": l}))
	t.Cleanup(s.Close)
	return s, l, manifest, blob
}

// The registry client reads what is served.
func TestServe(t *testing.T) {
	t.Parallel()
	s, _, manifest, blob := newServer(t)
	u, _ := url.Parse(s.URL)
	c, err := registry.New(registry.Options{PlainHTTP: []string{u.Host}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ref, err := oci.ParseReference(u.Host + "/local/web:v1")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := c.Repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []oci.Reference{ref, ref.WithDigest(manifest.Digest)} {
		d, err := repo.Resolve(t.Context(), r)
		if err != nil || d.Digest != manifest.Digest || d.MediaType != oci.MediaTypeManifest {
			t.Fatalf("%s: %+v, %v", r, d, err)
		}
		if _, err := oci.ReadAll(t.Context(), repo, d, 1000); err != nil {
			t.Error(err)
		}
	}
	if data, err := oci.ReadAll(t.Context(), repo, blob, 1000); err != nil || string(data) != "0123456789" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestServeRefusals(t *testing.T) {
	t.Parallel()
	s, _, manifest, blob := newServer(t)
	for name, tt := range map[string]struct {
		method, path string
		status       int
		body         string
	}{
		"ping":             {"GET", "/v2/", 200, "{}"},
		"blob":             {"GET", "/v2/local/web/blobs/" + string(blob.Digest), 200, "0123456789"},
		"head":             {"HEAD", "/v2/local/web/manifests/" + string(manifest.Digest), 200, ""},
		"other repository": {"GET", "/v2/local/other/manifests/v1", 404, "NAME_UNKNOWN"},
		"other tag":        {"GET", "/v2/local/web/manifests/v2", 404, "MANIFEST_UNKNOWN"},
		"other blob":       {"GET", "/v2/local/web/blobs/" + string(oci.FromBytes(nil)), 404, "BLOB_UNKNOWN"},
		"bad digest":       {"GET", "/v2/local/web/blobs/sha256:x", 400, "DIGEST_INVALID"},
		"bad tag":          {"GET", "/v2/local/web/manifests/-x", 400, "MANIFEST_INVALID"},
		"dot-dot":          {"GET", "/v2/local/web/blobs/..%2f..%2findex.json", 404, "UNSUPPORTED"},
		"index of layout":  {"GET", "/v2/local/web/index.json", 404, "UNSUPPORTED"},
		"upload":           {"POST", "/v2/local/web/blobs/uploads/", 405, "read-only"},
		"delete":           {"DELETE", "/v2/local/web/manifests/v1", 405, "read-only"},
		"catalogue":        {"GET", "/v2/_catalog", 404, "UNSUPPORTED"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, s.URL+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.body) {
			t.Errorf("%s: want %d %q, got %d %q", name, tt.status, tt.body, resp.StatusCode, body)
		}
	}
}

func TestServeRange(t *testing.T) {
	t.Parallel()
	s, _, _, blob := newServer(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/v2/local/web/blobs/"+string(blob.Digest), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=3-5")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusPartialContent || string(body) != "345" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}
