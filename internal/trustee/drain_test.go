package trustee_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
)

// TestDrainDelay: between a stop and its end everything is served, /readyz is
// 503, and connections are not kept.
func TestDrainDelay(t *testing.T) {
	t.Parallel()
	const delay = 2 * time.Second
	e := start(t, "", func(o *trustee.Options) { o.Config.Limits.DrainDelay = config.Duration(delay) })
	c := e.raw()
	if a := e.do(c, "GET", "/readyz", nil, nil); a.status != http.StatusOK || a.header.Get("Connection") != "" {
		t.Fatalf("before: %d, %v", a.status, a.header)
	}
	ended := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(ended)
		e.stop()
	}()
	for a := e.do(c, "GET", "/readyz", nil, nil); a.status != http.StatusServiceUnavailable; {
		a = e.do(c, "GET", "/readyz", nil, nil)
	}
	// A new connection each: the answer before has ended the last one.
	for _, path := range []string{"/healthz", "/.well-known/jwks.json"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e.URL()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !resp.Close {
			t.Errorf("%s: %d, connection closed: %v", path, resp.StatusCode, resp.Close)
		}
	}
	<-ended
	if took := time.Since(began); took < delay {
		t.Errorf("ended after %v", took)
	}
}
