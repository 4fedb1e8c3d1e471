package registry_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registry"
)

// What is beside the repositories: other paths of the API, and other places.
func TestExtension(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	h := http.NewServeMux()
	h.HandleFunc("GET /v2/{$}", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Has", "1") })
	h.HandleFunc("GET /same", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/v2/", http.StatusFound) })
	h.HandleFunc("GET /round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	h.HandleFunc("GET /other", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) })
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	address := strings.TrimPrefix(server.URL, "http://")
	c, err := registry.New(registry.Options{PlainHTTP: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	ref, err := oci.ParseReference(address + "/shop/web")
	if err != nil {
		t.Fatal(err)
	}
	header, body, err := c.Get(t.Context(), ref, "/v2/")
	if err != nil || header.Get("X-Has") != "1" {
		t.Fatalf("%v, %v", header, err)
	}
	_, _ = io.Copy(io.Discard, body)
	_ = body.Close()
	if _, _, err := c.Get(t.Context(), ref, "/extensions/v2/none"); !errors.Is(err, oci.ErrNotFound) {
		t.Error(err)
	}
	for path, ok := range map[string]bool{"/same": true, "/round": false, "/other": false} {
		resp, err := c.HTTP().Get(server.URL + path)
		if err == nil {
			_ = resp.Body.Close()
		}
		if (err == nil) != ok || (!ok && !errors.Is(err, registry.ErrRefused)) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
