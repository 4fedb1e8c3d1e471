package webhook

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"crypto/x509"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// HMAC-SHA-256 computed with openssl dgst -sha256 -hmac over "1700000000.{}".
func TestSignKnownAnswer(t *testing.T) {
	t.Parallel()
	got := Sign(secret.New([]byte("0123456789abcdef")), time.Unix(1_700_000_000, 0), []byte("{}"))
	const want = "t=1700000000,v1=e4f8e2ecae2295b2ddb2f0b5584c8275e226c0ebe9b3b819e70156bb67122e3e"
	if got != want {
		t.Errorf("got %s, expected %s", got, want)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	body := []byte(`{"version":1}`)
	good := Sign(key(), now, body)
	if err := Verify(key(), good, body, now.Add(time.Minute), 5*time.Minute); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		key    secret.Bytes
		header string
		body   string
		now    time.Time
	}{
		"altered body":    {key(), good, `{"version":2}`, now},
		"another secret":  {secret.New([]byte("another secret of the webhook")), good, string(body), now},
		"no secret":       {secret.Bytes{}, good, string(body), now},
		"too old":         {key(), good, string(body), now.Add(6 * time.Minute)},
		"from the future": {key(), good, string(body), now.Add(-6 * time.Minute)},
		"another time":    {key(), strings.Replace(good, "t=17", "t=18", 1), string(body), now},
		"padded time":     {key(), strings.Replace(good, "t=17", "t=017", 1), string(body), now},
		"empty":           {key(), "", string(body), now},
		"no signature":    {key(), "t=1700000000", string(body), now},
		"empty signature": {key(), "t=1700000000,v1=", string(body), now},
		"short":           {key(), good[:len(good)-2], string(body), now},
		"long":            {key(), good + strings.Repeat("0", 1000), string(body), now},
	} {
		if err := Verify(c.key, c.header, []byte(c.body), c.now, 5*time.Minute); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
}

// Over a real connection, to a receiver with its own root.
func TestTLS(t *testing.T) {
	t.Parallel()
	got := make(chan Delivery, 1)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if err := Verify(key(), r.Header.Get(SignatureHeader), body, time.Now(), time.Minute); err != nil {
			t.Error(err)
		}
		var d Delivery
		if err := json.Unmarshal(body, &d); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusAccepted)
		got <- d
	}))
	defer srv.Close()
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	log := newLog()
	o := options(t, log, nil)
	o.Client = nil
	o.Endpoints = []Endpoint{
		{Name: "stranger", URL: srv.URL, Secret: key(), Tenant: tenant.Default}, // does not know the root
		{Name: "good", URL: srv.URL + "/hook", Secret: key(), Tenant: tenant.Default, Roots: roots},
	}
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range o.Endpoints {
		if err := log.SetCursor(t.Context(), tenant.Default, e.Name, 0); err != nil {
			t.Fatal(err)
		}
	}
	log.append(tenant.Default, failed())
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { defer close(done); _ = n.Run(ctx) }()
	if d := <-got; len(d.Events) != 1 || d.Events[0].Type != AttestationFailed {
		t.Errorf("got %+v", d)
	}
	cancel()
	<-done
}

func FuzzParse(f *testing.F) {
	r := failed()
	body, err := json.Marshal(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"claims":[1],"data":null,"reasons":[{}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := parse(audit.Entry{Seq: 1, Body: body})
		if err != nil {
			return
		}
		out, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		// A byte can become six (\u0000) in JSON.
		if len(out) > 6*64*maxText {
			t.Errorf("an event of %d bytes", len(out))
		}
	})
}

func FuzzVerify(f *testing.F) {
	now := time.Unix(1_700_000_000, 0)
	f.Add(Sign(key(), now, []byte("{}")), []byte("{}"))
	f.Add("t=1,v1=00", []byte(""))
	f.Fuzz(func(t *testing.T, header string, body []byte) {
		if Verify(key(), header, body, now, time.Minute) != nil {
			return
		}
		// Only what the secret's holder signs verifies, in one spelling but for
		// the letter case of hex.
		seconds, _, _ := strings.Cut(strings.TrimPrefix(header, "t="), ",")
		if !strings.HasPrefix(header, "t="+seconds+",v1=") {
			t.Errorf("accepted %q", header)
		}
	})
}
