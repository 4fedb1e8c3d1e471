package ratelimit

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/kbs"
)

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func limiter(t *testing.T, o Options) (*Limiter, *clock) {
	t.Helper()
	c := &clock{t: time.Unix(1_700_000_000, 0)}
	o.Now = c.now
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return l, c
}

func TestAllow(t *testing.T) {
	t.Parallel()
	l, c := limiter(t, Options{Rate: 2, Burst: 3})
	for i := range 3 {
		if ok, _ := l.Allow("a"); !ok {
			t.Fatalf("request %d of the burst refused", i)
		}
	}
	ok, wait := l.Allow("a")
	if ok || wait != 500*time.Millisecond {
		t.Fatalf("after the burst: %v, retry after %s; expected a refusal and 500ms", ok, wait)
	}
	if ok, _ := l.Allow("b"); !ok {
		t.Error("another client is limited too")
	}
	c.add(wait - time.Millisecond)
	if ok, _ := l.Allow("a"); ok {
		t.Error("allowed before its time")
	}
	c.add(time.Millisecond)
	if ok, _ := l.Allow("a"); !ok {
		t.Error("refused after retryAfter")
	}
	c.add(time.Hour)
	n := 0
	for range 10 {
		if ok, _ := l.Allow("a"); ok {
			n++
		}
	}
	if n != 3 {
		t.Errorf("after a long pause %d requests at once, expected the burst of 3", n)
	}
}

func TestClockJumpsBack(t *testing.T) {
	t.Parallel()
	l, c := limiter(t, Options{Rate: 1, Burst: 1})
	l.Allow("a")
	c.add(-time.Hour)
	if ok, wait := l.Allow("a"); ok || wait > time.Second {
		t.Errorf("got %v, %s: expected a refusal for at most a second", ok, wait)
	}
	c.add(time.Second)
	if ok, _ := l.Allow("a"); !ok {
		t.Error("still refused a second later")
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	l, _ := limiter(t, Options{Rate: 1, Burst: 100, Concurrent: 2})
	r1, refused := l.Acquire("a")
	if refused != nil {
		t.Fatal(refused)
	}
	if _, refused := l.Acquire("a"); refused != nil {
		t.Fatal(refused)
	}
	if _, refused := l.Acquire("a"); refused == nil || refused.Reason != Concurrency {
		t.Fatalf("third: got %+v", refused)
	}
	if _, refused := l.Acquire("b"); refused != nil {
		t.Errorf("another client: %+v", refused)
	}
	r1()
	r1() // once more is harmless
	if _, refused := l.Acquire("a"); refused != nil {
		t.Errorf("after a release: %+v", refused)
	}
	if _, refused := l.Acquire("a"); refused == nil {
		t.Error("releasing twice made room for two")
	}
}

// Memory stays bounded however many addresses there are, and clients with
// requests under way keep their count.
func TestBoundedClients(t *testing.T) {
	t.Parallel()
	l, _ := limiter(t, Options{Rate: 1, Burst: 2, Concurrent: 1, MaxClients: 320})
	release, refused := l.Acquire("held")
	if refused != nil {
		t.Fatal(refused)
	}
	for i := range 10_000 {
		if ok, _ := l.Allow(fmt.Sprintf("c%d", i)); !ok {
			t.Fatalf("client %d refused", i)
		}
	}
	if n := l.Clients(); n > 320 {
		t.Errorf("%d clients are remembered, expected at most 320", n)
	}
	if _, refused := l.Acquire("held"); refused == nil || refused.Reason != Concurrency {
		t.Errorf("the client with a request under way was forgotten: %+v", refused)
	}
	release()
}

func TestAllClientsBusy(t *testing.T) {
	t.Parallel()
	l, _ := limiter(t, Options{MaxClients: shards})
	refusals := 0
	var releases []func()
	for i := range 500 {
		release, refused := l.Acquire(fmt.Sprintf("c%d", i))
		releases = append(releases, release)
		if refused != nil {
			if refused.Reason != Clients || refused.RetryAfter <= 0 {
				t.Fatalf("got %+v", refused)
			}
			refusals++
		}
	}
	if refusals < 500-shards {
		t.Errorf("%d refusals: more than %d clients are remembered", refusals, shards)
	}
	for _, r := range releases {
		r()
	}
	if _, refused := l.Acquire("late"); refused != nil {
		t.Errorf("after all are done: %+v", refused)
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"192.0.2.1":          "192.0.2.1",
		"::ffff:192.0.2.1":   "192.0.2.1",
		"2001:db8::1":        "2001:db8::/64",
		"2001:db8::ffff:1":   "2001:db8::/64",
		"2001:db8:0:1::1":    "2001:db8:0:1::/64",
		"fe80::1%eth0":       "fe80::/64",
		"2001:db8:0:0:a::%x": "2001:db8::/64",
	} {
		if got := Key(netip.MustParseAddr(in)); got != want {
			t.Errorf("%s: got %s, expected %s", in, got, want)
		}
	}
	if Key(netip.Addr{}) == "" {
		t.Error("the invalid address has no key")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{
		{Rate: -1}, {Rate: math.NaN()}, {Rate: math.Inf(1)}, {Rate: 2e6}, {Burst: -1}, {Burst: 2_000_000},
		{Concurrent: -1}, {MaxClients: 1}, {MaxClients: 1 << 30},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "expected") {
			t.Errorf("%+v: got %v", o, err)
		}
	}
}

func TestMiddleware(t *testing.T) {
	t.Parallel()
	l, _ := limiter(t, Options{Rate: .1, Burst: 1, Exempt: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	var rejected atomic.Int32
	h := Middleware{
		Limiter: l, Logger: slog.New(slog.DiscardHandler),
		Client:   func(r *http.Request) netip.Addr { return netip.MustParseAddr(r.Header.Get("X-Test-Addr")) },
		Rejected: func(Reason) { rejected.Add(1) },
	}.HTTP(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	get := func(addr string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "/kbs/v0/auth", nil)
		r.Header.Set("X-Test-Addr", addr)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	if w := get("192.0.2.1"); w.Code != http.StatusNoContent {
		t.Fatalf("first: %d", w.Code)
	}
	w := get("192.0.2.1")
	var body kbs.ErrorInfo
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "10" || !strings.Contains(body.Detail, "expected at most 0.1 requests per second") {
		t.Errorf("second: %d, Retry-After %q, %+v", w.Code, w.Header().Get("Retry-After"), body)
	}
	if w := get("192.0.2.2"); w.Code != http.StatusNoContent {
		t.Errorf("another address: %d", w.Code)
	}
	for range 5 {
		if w := get("10.1.2.3"); w.Code != http.StatusNoContent {
			t.Errorf("exempt address: %d", w.Code)
		}
	}
	if rejected.Load() != 1 {
		t.Errorf("%d rejections were counted, expected 1", rejected.Load())
	}
}

// A handler that panics gives its place back.
func TestMiddlewareReleasesAfterPanic(t *testing.T) {
	t.Parallel()
	l, _ := limiter(t, Options{Concurrent: 1, Burst: 10})
	m := Middleware{Limiter: l, Logger: slog.New(slog.DiscardHandler), Client: func(*http.Request) netip.Addr { return netip.Addr{} }}
	h := m.HTTP(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	for range 3 {
		func() {
			defer func() { _ = recover() }()
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
		}()
	}
	if _, refused := l.Acquire(Key(netip.Addr{})); refused != nil {
		t.Errorf("got %+v", refused)
	}
}

func TestRace(t *testing.T) {
	t.Parallel()
	l, err := New(Options{Rate: 1e6, Burst: 1e6, MaxClients: 64, Concurrent: 4})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				release, _ := l.Acquire(fmt.Sprintf("c%d", (g*i)%200))
				l.Clients()
				release()
			}
		})
	}
	wg.Wait()
	for i := range l.sh {
		for e := l.sh[i].order.Front(); e != nil; e = e.Next() {
			if c, _ := e.Value.(*client); c.active != 0 {
				t.Errorf("client %s: %d requests under way after all ended", c.key, c.active)
			}
		}
	}
}

func BenchmarkAcquire(b *testing.B) {
	l, err := New(Options{Rate: 1e6, Burst: 1e6})
	if err != nil {
		b.Fatal(err)
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			release, _ := l.Acquire("192.0.2.1")
			release()
		}
	})
}
