package kubeapi

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// server answers like an API server; the handler sees requests with a good
// token only.
func server(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer s3cret" {
			http.Error(w, `{"message":"Unauthorized"}`, http.StatusUnauthorized)
			return
		}
		handler(w, r)
	}))
	t.Cleanup(s.Close)
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"ca.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), "token": []byte("s3cret\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := New(s.URL, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestLabel(t *testing.T) {
	t.Parallel()
	var got map[string]map[string]map[string]*string
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPatch || r.URL.Path != "/api/v1/nodes/n1" || r.Header.Get("Content-Type") != "application/strategic-merge-patch+json" {
			t.Errorf("%s %s %s", r.Method, r.URL, r.Header)
		}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Errorf("%v: %s", err, body)
		}
		_, _ = w.Write([]byte("{}"))
	})
	if err := c.Label(t.Context(), "n1", map[string]string{"a/x": "true"}, []string{"a/x", "a/y"}); err != nil {
		t.Fatal(err)
	}
	labels := got["metadata"]["labels"]
	if y, ok := labels["a/y"]; len(labels) != 2 || *labels["a/x"] != "true" || !ok || y != nil {
		t.Errorf("%v", labels)
	}
}

func TestWanted(t *testing.T) {
	t.Parallel()
	answers := map[string]func(http.ResponseWriter){
		"there": func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"metadata":{"name":"x"}}`)) },
		"deleting": func(w http.ResponseWriter) {
			_, _ = w.Write([]byte(`{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}`))
		},
		"gone": func(w http.ResponseWriter) {
			http.Error(w, `{"message":"daemonsets \"x\" not found"}`, http.StatusNotFound)
		},
		"no":     func(w http.ResponseWriter) { http.Error(w, `{"message":"no"}`, http.StatusForbidden) },
		"broken": func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{`)) },
		"down":   func(w http.ResponseWriter) { http.Error(w, strings.Repeat("x", 1000), http.StatusServiceUnavailable) },
	}
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		name, ok := strings.CutPrefix(r.URL.Path, "/apis/apps/v1/namespaces/ns/daemonsets/")
		if !ok || r.Method != http.MethodGet {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		answers[name](w)
	})
	for name, want := range map[string]bool{"there": true, "deleting": false, "gone": false} {
		if got, err := c.Wanted(t.Context(), "ns", name); err != nil || got != want {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
	for name, want := range map[string]error{"no": ErrForbidden, "broken": nil, "down": nil} {
		got, err := c.Wanted(t.Context(), "ns", name)
		if err == nil || got || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %t, %v", name, got, err)
		}
		if len(err.Error()) > 500 {
			t.Errorf("%s: %d bytes of error", name, len(err.Error()))
		}
	}
	c.token = func() (string, error) { return "other", nil }
	if _, err := c.Wanted(t.Context(), "ns", "there"); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("%v", err)
	}
}

// TestCreateEvent: what an API server gets, and what it may answer.
func TestCreateEvent(t *testing.T) {
	t.Parallel()
	code := http.StatusCreated
	var got map[string]any
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.URL.Path != "/api/v1/namespaces/shop/events" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s %s", r.Method, r.URL, r.Header)
		}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Errorf("%v: %s", err, body)
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(`{"message":"said"}`))
	})
	event := Event{
		Name: "web-0.1", Namespace: "shop", Pod: "web-0", UID: "u-1", Warning: true, Reason: "Refused", Message: "<no>", Node: "n1",
		At: time.Date(2026, 1, 2, 13, 0, 0, 5, time.FixedZone("", 3600)),
	}
	if err := c.CreateEvent(t.Context(), event); err != nil {
		t.Fatal(err)
	}
	var want map[string]any
	if err := json.Unmarshal([]byte(`{"apiVersion":"v1","kind":"Event","metadata":{"name":"web-0.1","namespace":"shop"},
		"involvedObject":{"apiVersion":"v1","kind":"Pod","namespace":"shop","name":"web-0","uid":"u-1"},"type":"Warning","reason":"Refused","message":"<no>",
		"firstTimestamp":"2026-01-02T12:00:00Z","lastTimestamp":"2026-01-02T12:00:00Z","count":1,"source":{"component":"coffer","host":"n1"},
		"reportingComponent":"coffer","reportingInstance":"n1"}`), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	event.Warning = false
	if err := c.CreateEvent(t.Context(), event); err != nil || got["type"] != "Normal" {
		t.Errorf("%v, %v", got["type"], err)
	}
	for status, want := range map[int]error{
		http.StatusConflict: ErrExists, http.StatusNotFound: ErrNotFound, http.StatusForbidden: ErrForbidden,
		http.StatusUnprocessableEntity: ErrInvalid, http.StatusBadRequest: ErrInvalid,
	} {
		code = status
		if err := c.CreateEvent(t.Context(), event); !errors.Is(err, want) || !strings.Contains(err.Error(), "said") {
			t.Errorf("%d: %v", status, err)
		}
	}
	code = http.StatusTooManyRequests
	if err := c.CreateEvent(t.Context(), event); err == nil || errors.Is(err, ErrInvalid) || errors.Is(err, ErrExists) {
		t.Errorf("%v", err)
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	var gets atomic.Int64
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodDelete:
			body, _ := io.ReadAll(r.Body)
			if !strings.Contains(string(body), `"propagationPolicy":"Foreground"`) {
				t.Errorf("%s", body)
			}
		case gets.Add(1) > 2:
			http.Error(w, "{}", http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte("{}"))
	})
	if err := c.Delete(t.Context(), "ns", "x", time.Millisecond); err != nil || gets.Load() != 3 {
		t.Errorf("%v after %d", err, gets.Load())
	}
	gets.Store(-1 << 40)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Delete(ctx, "ns", "x", time.Millisecond); err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for address, dir := range map[string]string{"http://x": dir, "https://x": dir, "https://y": "/nowhere"} {
		if _, err := New(address, dir); err == nil {
			t.Errorf("%s, %s: taken", address, dir)
		}
	}
}
