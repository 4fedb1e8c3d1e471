package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

func count(from, to int64) []int64 {
	var out []int64
	for i := from; i <= to; i++ {
		out = append(out, i)
	}
	return out
}

func expectEvents(t *testing.T, b *bubble, want []int64) {
	t.Helper()
	if diff := cmp.Diff(want, b.recv.events()); diff != "" {
		t.Errorf("events (-expected +got):\n%s\nlog: %s", diff, b.out)
	}
}

func TestDelivers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, recv := newLog(), &receiver{t: t}
		b := run(t, options(t, log, recv), log, recv)
		log.append(tenant.Default, failed())
		log.append(tenant.Default, released())
		log.append(tenant.Default, failed())
		log.append("acme", failed()) // another tenant's
		b.Wake()
		synctest.Wait()
		expectEvents(t, b, []int64{1, 3})
		e := recv.got[0].Events[0]
		want := Event{
			ID: "default-1", Seq: 1, Type: AttestationFailed, At: e.At, Client: "192.0.2.1", TEE: "snp", Session: "ab12", Status: 403,
			Reasons: []kbs.Reason{{Rule: "snp.chain", Expected: "AMD", Got: "<other>"}}, Detail: "refused",
		}
		if diff := cmp.Diff(want, e); diff != "" {
			t.Errorf("event (-expected +got):\n%s", diff)
		}
		if h := recv.header[0]; h.Get("Content-Type") != "application/json" || h.Get(DeliveryHeader) != recv.got[0].ID {
			t.Errorf("headers: %v", h)
		}
		// Without a wake the log is looked at by itself.
		log.append(tenant.Default, failed())
		pass(6 * time.Second)
		expectEvents(t, b, []int64{1, 3, 4})
		b.stop()
		// What happens while it is down is delivered after the restart, once.
		log.append(tenant.Default, failed())
		b.start(t)
		expectEvents(t, b, []int64{1, 3, 4, 5})
		b.stop()
		if b.obs.delivered != 4 || b.obs.failed != 0 {
			t.Errorf("counted: %+v", b.obs)
		}
	})
}

// A webhook that is new gets what happens from its start on, also where the
// first records come before the first look.
func TestBeginsAtItsStart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ before, after int }{
		"nothing": {0, 0}, "history only": {120, 0}, "news only": {0, 120}, "both": {120, 120}, "one each": {1, 1}, "a page": {50, 50},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log, recv := newLog(), &receiver{t: t}
				for range c.before {
					log.append("acme", failed())
				}
				pass(time.Second)
				log.setFail(errors.New("the database is down"))
				o := options(t, log, recv)
				o.Endpoints[0].Tenant = tenant.All
				b := run(t, o, log, recv)
				for range c.after {
					log.append("acme", failed())
				}
				log.setFail(nil)
				pass(10 * time.Minute)
				expectEvents(t, b, count(int64(c.before)+1, int64(c.before+c.after)))
				b.stop()
			})
		})
	}
}

func TestRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := newLog()
		statuses := []int{0, 500, 503, 429, 401, 302, 404}
		recv := &receiver{t: t, answer: func(n int, _ Delivery) (int, http.Header) {
			if n < len(statuses) {
				h := http.Header{"Location": {"https://elsewhere.example/"}}
				if statuses[n] == 429 {
					h.Set("Retry-After", "60")
				}
				return statuses[n], h
			}
			return 200, nil
		}}
		b := run(t, options(t, log, recv), log, recv)
		log.append(tenant.Default, failed())
		b.Wake()
		pass(time.Hour)
		expectEvents(t, b, []int64{1})
		var pauses []time.Duration
		for i, at := range recv.times[1:] {
			pauses = append(pauses, at.Sub(recv.times[i]))
		}
		// The fourth answer asked for a minute.
		want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, time.Minute, 16 * time.Second, 32 * time.Second, 64 * time.Second}
		if diff := cmp.Diff(want, pauses); diff != "" {
			t.Errorf("pauses (-expected +got):\n%s", diff)
		}
		if slices.ContainsFunc(recv.urls, func(u string) bool { return strings.Contains(u, "elsewhere") }) {
			t.Error("a redirect was followed")
		}
		b.stop()
		if b.obs.failed != len(statuses) || b.obs.ok != 1 || !b.obs.lastLag.IsZero() || !b.obs.lagWasNonZeroBefore {
			t.Errorf("counted: %+v", b.obs)
		}
		if strings.Contains(b.out.String(), "T0K3N") {
			t.Errorf("the log holds the URL's path: %s", b.out)
		}
	})
}

// The receiver is down for a day: nothing is lost, also across a restart.
func TestOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := newLog()
		up := false
		recv := &receiver{t: t, answer: func(int, Delivery) (int, http.Header) {
			if up {
				return 202, nil
			}
			return 0, nil
		}}
		b := run(t, options(t, log, recv), log, recv)
		for range 130 {
			log.append(tenant.Default, failed())
			pass(10 * time.Minute)
		}
		b.stop()
		b.start(t)
		pass(time.Hour)
		if n := recv.requests(); n > 1000 {
			t.Errorf("%d requests in a day of outage", n)
		}
		recv.mu.Lock()
		up = true
		recv.mu.Unlock()
		pass(10 * time.Minute)
		expectEvents(t, b, count(1, 130))
		b.stop()
	})
}

// An event that the receiver calls malformed is given up; those around it are not.
func TestPoisonedEvent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := newLog()
		recv := &receiver{t: t, answer: func(_ int, d Delivery) (int, http.Header) {
			if slices.ContainsFunc(d.Events, func(e Event) bool { return e.Seq == 33 }) {
				return 422, nil
			}
			return 200, nil
		}}
		b := run(t, options(t, log, recv), log, recv)
		for range 100 {
			log.append(tenant.Default, failed())
		}
		pass(time.Hour)
		want := slices.DeleteFunc(count(1, 100), func(i int64) bool { return i == 33 })
		expectEvents(t, b, want)
		b.stop()
		if b.obs.givenUp != 1 || b.obs.delivered != 99 || !strings.Contains(b.out.String(), "given up") {
			t.Errorf("counted: %+v", b.obs)
		}
		if n := recv.requests(); n > 40 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestGivesUpInTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := newLog()
		recv := &receiver{t: t, answer: func(_ int, d Delivery) (int, http.Header) {
			if d.Events[0].Seq == 1 {
				return 500, nil
			}
			return 200, nil
		}}
		o := options(t, log, recv)
		o.GiveUpAfter = time.Hour
		b := run(t, o, log, recv)
		log.append(tenant.Default, failed())
		b.Wake()
		pass(time.Minute)
		log.append(tenant.Default, failed())
		pass(30 * time.Minute)
		expectEvents(t, b, nil)
		pass(time.Hour)
		expectEvents(t, b, []int64{2})
		b.stop()
		if b.obs.givenUp != 1 {
			t.Errorf("counted: %+v", b.obs)
		}
	})
}

// Audit retention may drop what an outage kept from being delivered.
func TestRetention(t *testing.T) {
	t.Parallel()
	for name, cursor := range map[string]int64{"from the beginning": 0, "from the middle": 30} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log, recv := newLog(), &receiver{t: t}
				if err := log.SetCursor(t.Context(), tenant.Default, "ops", cursor); err != nil {
					t.Fatal(err)
				}
				for range 220 {
					log.append(tenant.Default, failed())
				}
				log.dropped[tenant.Default] = 200
				b := run(t, options(t, log, recv), log, recv)
				pass(time.Minute)
				expectEvents(t, b, count(201, 220))
				b.stop()
				if !strings.Contains(b.out.String(), "dropped before they were delivered") {
					t.Errorf("nothing is said about the gap: %s", b.out)
				}
			})
		})
	}
}

// Two replicas: with a lease each event once, without it at least once, and
// never out of order from one of them.
func TestReplicas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, recv := newLog(), &receiver{t: t}
		holder := ""
		lease := func(me string) func(context.Context, string, time.Duration) (bool, error) {
			return func(_ context.Context, name string, ttl time.Duration) (bool, error) {
				log.mu.Lock()
				defer log.mu.Unlock()
				if name != "webhook/ops" || ttl <= 0 {
					t.Errorf("lease %q for %s", name, ttl)
				}
				if holder == "" {
					holder = me
				}
				return holder == me, nil
			}
		}
		o := options(t, log, recv)
		o.Lease = lease("a")
		a := run(t, o, log, recv)
		o.Lease = lease("b")
		b := run(t, o, log, recv)
		for range 10 {
			log.append(tenant.Default, failed())
			a.Wake()
			b.Wake()
			pass(time.Second)
		}
		expectEvents(t, a, count(1, 10))
		a.stop() // dies; the lease runs out
		log.append(tenant.Default, failed())
		pass(time.Minute)
		log.mu.Lock()
		holder = ""
		log.mu.Unlock()
		pass(time.Minute)
		expectEvents(t, b, count(1, 11))
		b.stop()
	})
}

// One tenant's trouble is not another's.
func TestAllTenants(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, recv := newLog(), &receiver{t: t}
		o := options(t, log, recv)
		o.Endpoints[0].Tenant = tenant.All
		o.Endpoints[0].Events = Types()
		o.Source = broken{log, tenant.Default}
		b := run(t, o, log, recv)
		log.append(tenant.Default, failed())
		log.append("acme", failed())
		log.append("acme", released())
		pass(time.Minute)
		expectEvents(t, b, []int64{1, 2})
		if d := recv.got[0]; d.Tenant != "acme" || d.Events[1].Type != ResourceReleased {
			t.Errorf("got %+v", d)
		}
		b.stop()
	})
}

type broken struct {
	*auditLog
	t tenant.Name
}

func (b broken) Entries(ctx context.Context, t tenant.Name, q audit.Query) ([]audit.Entry, error) {
	if t == b.t {
		return nil, errors.New("broken")
	}
	return b.auditLog.Entries(ctx, t, q)
}

func TestTypes(t *testing.T) {
	t.Parallel()
	for want, r := range map[string]audit.Record{
		AttestationFailed:    {Kind: audit.KindAttestation, Granted: true, EARStatus: "contraindicated"},
		AttestationSucceeded: {Kind: audit.KindAttestation, Granted: true, EARStatus: "affirming"},
		ResourceDenied:       {Kind: audit.KindResource},
		ResourceReleased:     {Kind: audit.KindResource, Granted: true},
		AdminRefused:         {Kind: audit.KindAdmin},
		AdminChanged:         {Kind: audit.KindAdmin, Granted: true},
		"":                   {Kind: "new"},
	} {
		if got := typeOf(&r); got != want {
			t.Errorf("%+v: got %q, expected %q", r, got, want)
		}
	}
	if got := typeOf(&audit.Record{Kind: audit.KindAttestation, Granted: true, EARStatus: "warning"}); got != AttestationFailed {
		t.Errorf("warning: got %q", got)
	}
}

func TestEventIsBounded(t *testing.T) {
	t.Parallel()
	r := failed()
	long := strings.Repeat("ä", 60<<10)
	r.Detail, r.Reasons = long, nil
	for range 50 {
		r.Reasons = append(r.Reasons, kbs.Reason{Rule: "x", Got: strings.Repeat("y", 2000)})
	}
	body, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	e, err := parse(audit.Entry{Seq: 1, Body: body})
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(e)
	if err != nil || len(out) > 64<<10 || !e.Truncated || len(e.Reasons) != maxReasons {
		t.Errorf("%d bytes, %d reasons, truncated %v, %v", len(out), len(e.Reasons), e.Truncated, err)
	}
	if _, err := parse(audit.Entry{Seq: 1, Body: make([]byte, audit.MaxBody+1)}); err == nil {
		t.Error("an oversized entry was read")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := Endpoint{Name: "ops", URL: "https://hooks.example/x", Secret: key(), Tenant: tenant.All}
	for name, c := range map[string]struct {
		change func(*Endpoint)
		want   string
	}{
		"no name":        {func(e *Endpoint) { e.Name = "" }, "name: expected"},
		"bad name":       {func(e *Endpoint) { e.Name = "a/b" }, "name: expected"},
		"http":           {func(e *Endpoint) { e.URL = "http://hooks.example/x" }, "expected https, or http to a loopback address"},
		"http, loopback": {func(e *Endpoint) { e.URL = "http://127.0.0.1:80/x" }, ""},
		"http, ::1":      {func(e *Endpoint) { e.URL = "http://[::1]/x" }, ""},
		"pretender":      {func(e *Endpoint) { e.URL = "http://127.0.0.1.example/x" }, "expected https"},
		"user":           {func(e *Endpoint) { e.URL = "https://u:hunter2@hooks.example/x" }, "no user and password"},
		"no host":        {func(e *Endpoint) { e.URL = "https:///x" }, "expected https://host/path"},
		"scheme":         {func(e *Endpoint) { e.URL = "file:///etc/passwd" }, "expected https"},
		"no URL":         {func(e *Endpoint) { e.URL = "://" }, "expected https"},
		"short secret":   {func(e *Endpoint) { e.Secret = secret.New([]byte("hunter2")) }, "at least 16 bytes"},
		"tenant":         {func(e *Endpoint) { e.Tenant = "A" }, "tenant"},
		"no tenant":      {func(e *Endpoint) { e.Tenant = "" }, "tenant"},
		"event":          {func(e *Endpoint) { e.Events = []string{"x"} }, "events: expected one of"},
	} {
		e := good
		c.change(&e)
		log := newLog()
		_, err := New(Options{Endpoints: []Endpoint{e}, Source: log, Cursors: log, Tenants: func(context.Context) ([]tenant.Name, error) { return nil, nil }})
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: got %v, expected %q", name, err, c.want)
		}
	}
	log := newLog()
	if _, err := New(Options{Endpoints: []Endpoint{good, good}, Source: log, Cursors: log, Tenants: func(context.Context) ([]tenant.Name, error) { return nil, nil }}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the same name twice: %v", err)
	}
	if _, err := New(Options{}); err == nil {
		t.Error("no source was accepted")
	}
	var none *Notifier
	none.Wake()
}
