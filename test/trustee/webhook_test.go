package tests

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/webhook"
	"github.com/coffer-project/coffer/secret"
)

const webhookSecret = "a-webhook-secret-of-the-test-0815"

// receiver is told of events.
type receiver struct {
	t   *testing.T
	mu  sync.Mutex
	got []webhook.Delivery
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err == nil {
		err = webhook.Verify(secret.New([]byte(webhookSecret)), req.Header.Get(webhook.SignatureHeader), body, time.Now(), time.Minute)
	}
	var d webhook.Delivery
	if err == nil {
		err = json.Unmarshal(body, &d)
	}
	if err != nil {
		r.t.Errorf("delivery: %v\n%s", err, body)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, d)
}

// events are those that came, each once.
func (r *receiver) events() map[string]webhook.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]webhook.Event{}
	for _, d := range r.got {
		for _, e := range d.Events {
			out[e.ID] = e
		}
	}
	return out
}

// TestWebhook: failed attestations arrive, signed, although the receiver was
// down and the trustee was killed in between.
func TestWebhook(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "webhook.key"), webhookSecret+"\n")
	// An address where nobody listens yet.
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	extra := `
[[webhook]]
name = "alerts"
url = "http://` + address + `/hook"
secret_file = "webhook.key"
tenant = "*"
events = ["attestation.failed", "resource.denied"]
`
	s := launch(t, the.plain, dir, extra)
	s.populate("")
	fail := func() {
		// Initdata that is not what was launched: evidence that is refused.
		err := s.guest("", pod(t, document, ""), document+"# other\n").Attest(t.Context())
		refused(t, err, http.StatusForbidden, "snp.host_data")
	}
	fail()
	s.check("")
	s.signal(os.Kill)
	s = launch(t, the.plain, dir, extra)
	fail()
	_, err = s.good("").Resource(t.Context(), uri(t, "kbs:///other/key/1"))
	refused(t, err, http.StatusForbidden, "initdata.registered")

	r := &receiver{t: t}
	if l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", address); err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: r, ReadHeaderTimeout: limit}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	// Evidence of a software TEE is never affirmed: that two pods came with it
	// is told as well, beside the three refusals.
	eventually(t, "five events arrive", func() bool { return len(r.events()) >= 5 })
	count := map[string]int{}
	for _, e := range r.events() {
		if e.Granted && e.EARStatus == "warning" && e.Simulated {
			count["simulated"]++
			continue
		}
		count[e.Type]++
		if len(e.Reasons) == 0 || e.Granted || e.Status != http.StatusForbidden || e.Detail == "" || e.Client == "" {
			t.Errorf("%+v", e)
		}
	}
	if count["attestation.failed"] != 2 || count["resource.denied"] != 1 || count["simulated"] != 2 || len(count) != 3 {
		t.Errorf("events %v", count)
	}
	// What was delivered stays delivered.
	s.stop()
	before := len(r.events())
	s = launch(t, the.plain, dir, extra)
	fail()
	eventually(t, "the next event arrives", func() bool { return len(r.events()) == before+1 })
	r.mu.Lock()
	last := r.got[len(r.got)-1]
	r.mu.Unlock()
	if len(last.Events) != 1 {
		t.Errorf("after a restart %d events came again", len(last.Events)-1)
	}
}
