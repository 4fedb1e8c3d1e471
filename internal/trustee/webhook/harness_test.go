package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

const claimMarker = "hunter2-claim"

func key() secret.Bytes { return secret.New([]byte("0123456789abcdef-webhook")) }

// auditLog is an audit log and its cursors in memory.
type auditLog struct {
	mu      sync.Mutex
	entries map[tenant.Name][]audit.Entry
	dropped map[tenant.Name]int64 // entries up to here are gone
	cursors map[string]int64
	fail    error
	reads   int
}

func newLog() *auditLog {
	return &auditLog{entries: map[tenant.Name][]audit.Entry{}, dropped: map[tenant.Name]int64{}, cursors: map[string]int64{}}
}

func (l *auditLog) append(t tenant.Name, r audit.Record) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	seq := int64(len(l.entries[t])) + 1
	r.Tenant = t
	if r.ID == "" {
		r.ID = fmt.Sprintf("%s-%d", t, seq)
	}
	if r.At.IsZero() {
		r.At = time.Now()
	}
	body, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	l.entries[t] = append(l.entries[t], audit.Entry{Seq: seq, Body: body})
	return seq
}

// failed is a record of a refused attestation.
func failed() audit.Record {
	return audit.Record{
		Kind: audit.KindAttestation, TEE: "snp", Status: 403, Session: "ab12", Client: "192.0.2.1",
		Reasons: []kbs.Reason{{Rule: "snp.chain", Expected: "AMD", Got: "<other>"}}, Detail: "refused",
		Claims: json.RawMessage(`{"submods":"` + claimMarker + `"}`), Data: json.RawMessage(`["` + claimMarker + `"]`),
	}
}

func released() audit.Record {
	return audit.Record{Kind: audit.KindResource, Granted: true, Status: 200, Resource: "kbs:///a/b/c"}
}

func (l *auditLog) Entries(ctx context.Context, t tenant.Name, q audit.Query) ([]audit.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	if l.fail != nil {
		return nil, l.fail
	}
	all := l.entries[t][min(l.dropped[t], int64(len(l.entries[t]))):]
	var out []audit.Entry
	if q.After > 0 {
		for _, e := range all {
			if e.Seq > q.After && len(out) < q.Limit {
				out = append(out, e)
			}
		}
		return out, ctx.Err()
	}
	for _, e := range slices.Backward(all) {
		if (q.Before == 0 || e.Seq < q.Before) && len(out) < q.Limit {
			out = append(out, e)
		}
	}
	return out, ctx.Err()
}

func (l *auditLog) Cursor(_ context.Context, t tenant.Name, name string) (int64, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seq, ok := l.cursors[string(t)+"/"+name]
	return seq, ok, l.fail
}

func (l *auditLog) SetCursor(_ context.Context, t tenant.Name, name string, seq int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := string(t) + "/" + name
	if old, ok := l.cursors[k]; !ok || seq > old {
		l.cursors[k] = seq
	}
	return l.fail
}

func (l *auditLog) setFail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = err
}

// receiver is the other side, without a network so that synctest's clock rules.
type receiver struct {
	t      *testing.T
	mu     sync.Mutex
	got    []Delivery
	times  []time.Time
	header []http.Header
	urls   []string
	// answer decides on the n-th request, from 0: a status, or 0 for no
	// connection. Nil accepts all.
	answer func(n int, d Delivery) (status int, header http.Header)
	n      int
}

func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	if err := Verify(key(), req.Header.Get(SignatureHeader), body, time.Now(), time.Minute); err != nil {
		r.t.Error(err)
	}
	if bytes.Contains(body, []byte(claimMarker)) {
		r.t.Errorf("a delivery holds claims: %s", body)
	}
	var d Delivery
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		r.t.Error(err)
	}
	n := r.n
	r.n++
	r.times = append(r.times, time.Now())
	r.urls = append(r.urls, req.URL.String())
	status, header := http.StatusNoContent, http.Header(nil)
	if r.answer != nil {
		status, header = r.answer(n, d)
	}
	if status == 0 {
		return nil, errors.New("connection refused")
	}
	if status/100 == 2 {
		r.got = append(r.got, d)
		r.header = append(r.header, req.Header)
	}
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(bytes.NewReader(make([]byte, 1<<20))), Request: req, ProtoMajor: 1, ProtoMinor: 1}, nil
}

// events are the numbers of all events that were accepted, in order.
func (r *receiver) events() []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []int64
	for _, d := range r.got {
		for _, e := range d.Events {
			out = append(out, e.Seq)
		}
	}
	return out
}

func (r *receiver) requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n
}

type observer struct {
	mu                  sync.Mutex
	ok, failed          int
	delivered, givenUp  int
	lastLag             time.Time
	lagWasNonZeroBefore bool
}

func (o *observer) WebhookAttempt(ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ok {
		o.ok++
	} else {
		o.failed++
	}
}

func (o *observer) WebhookEvents(n int, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ok {
		o.delivered += n
	} else {
		o.givenUp += n
	}
}

func (o *observer) WebhookLag(t time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lastLag = t
	o.lagWasNonZeroBefore = o.lagWasNonZeroBefore || !t.IsZero()
}

// bubble is a notifier that runs in a synctest bubble.
type bubble struct {
	*Notifier
	log    *auditLog
	recv   *receiver
	obs    *observer
	out    *bytes.Buffer
	cancel context.CancelFunc
	done   chan struct{}
}

func options(t *testing.T, log *auditLog, recv *receiver) Options {
	t.Helper()
	return Options{
		Endpoints: []Endpoint{{Name: "ops", URL: "https://hooks.example/T0K3N", Secret: key(), Tenant: tenant.Default}},
		Source:    log, Cursors: log, Client: &http.Client{Transport: recv}, Jitter: func() float64 { return 1 },
		Tenants: func(context.Context) ([]tenant.Name, error) { return []tenant.Name{tenant.Default, "acme"}, nil },
	}
}

func run(t *testing.T, o Options, log *auditLog, recv *receiver) *bubble {
	t.Helper()
	b := &bubble{log: log, recv: recv, obs: &observer{}, out: &bytes.Buffer{}, done: make(chan struct{})}
	o.Observer, o.Logger = b.obs, slog.New(slog.NewTextHandler(b.out, nil))
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	b.Notifier = n
	b.start(t)
	return b
}

func (b *bubble) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	b.cancel, b.done = cancel, make(chan struct{})
	go func() {
		defer close(b.done)
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	synctest.Wait()
}

func (b *bubble) stop() {
	b.cancel()
	<-b.done
}

// pass lets time go by; in a bubble this costs none.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
