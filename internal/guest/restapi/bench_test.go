package restapi_test

import (
	"io"
	"net/http"
	"testing"
)

// BenchmarkResource is a container's request for a resource that is kept, over
// one connection.
func BenchmarkResource(b *testing.B) {
	s := start(b, newTrustee(b), quiet(), nil)
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, s.url+password, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		resp, err := s.http.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp.Status, err)
		}
		_ = resp.Body.Close()
	}
}

// BenchmarkFirstResource is an attestation and the first resource, without the
// time that evidence takes.
func BenchmarkFirstResource(b *testing.B) {
	tr := newTrustee(b)
	for b.Loop() {
		s := start(b, tr, quiet(), nil)
		if status, _ := s.get(b, password); status != http.StatusOK {
			b.Fatal(status)
		}
	}
}
