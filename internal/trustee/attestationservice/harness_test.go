package attestationservice

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/provenance"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

var now = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

// keeper is every store at once.
type keeper struct {
	mu       sync.Mutex
	policies map[string]string
	refs     map[string]refvalues.Reference
	records  []audit.Record
	err      error
}

func newKeeper() *keeper {
	return &keeper{policies: map[string]string{}, refs: map[string]refvalues.Reference{
		"a": {Name: "a", Entries: []refvalues.Entry{{Value: json.RawMessage(`"x"`)}, {Value: json.RawMessage(`"old"`), Expires: now}}},
	}}
}

func (k *keeper) key(t tenant.Name, id string) string { return string(t) + "/" + id }

func (k *keeper) SetPolicy(ctx context.Context, t tenant.Name, id, text, _ string) error {
	if _, err := policy.Compile(ctx, policy.Options{Name: id, Text: text}); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.policies[k.key(t, id)] = text
	return k.err
}

func (k *keeper) Policy(_ context.Context, t tenant.Name, id string) (string, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	text, ok := k.policies[k.key(t, id)]
	return text, ok, k.err
}

func (k *keeper) PolicyIDs(_ context.Context, t tenant.Name) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for id := range k.policies {
		if name, ok := strings.CutPrefix(id, string(t)+"/"); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, k.err
}

func (k *keeper) Reference(_ context.Context, _ tenant.Name, name string) (refvalues.Reference, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, ok := k.refs[name]
	return r, ok, k.err
}

func (k *keeper) Register(ctx context.Context, _ tenant.Name, message []byte, _ string) error {
	list, err := provenance.Parse(ctx, provenance.Options{AllowUnsigned: []string{provenance.Sample}}, message)
	if err != nil {
		return problem.New(http.StatusBadRequest, problem.ReferenceValue, "%v", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range list {
		k.refs[r.Name] = r
	}
	return k.err
}

func (k *keeper) ReferenceNames(_ context.Context, _ tenant.Name, after string, limit int) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for name := range k.refs {
		if name > after {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out[:min(len(out), limit)], k.err
}

func (k *keeper) Append(_ context.Context, t tenant.Name, r audit.Record) (audit.Entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r.Tenant = t
	k.records = append(k.records, r)
	return audit.Entry{}, k.err
}

func (k *keeper) last(t *testing.T) audit.Record {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.records) == 0 {
		t.Fatal("nothing was recorded")
	}
	return k.records[len(k.records)-1]
}

func (k *keeper) Generation(context.Context, tenant.Name) (int64, error) { return 1, nil }
func (k *keeper) PolicyVersions(context.Context, tenant.Name) (map[string]int64, error) {
	return nil, nil
}

type noTexts struct{ *keeper }

func (noTexts) PolicyText(context.Context, tenant.Name, string, int64) (string, error) {
	return "", errors.New("no text")
}

// fixed evaluates to what a test says and remembers what it was asked.
type fixed struct {
	mu  sync.Mutex
	got evaluation.Request
	e   *problem.Error
}

func (f *fixed) Evaluate(_ context.Context, r evaluation.Request) (*evaluation.Outcome, *problem.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got = r
	if f.e != nil {
		return nil, f.e
	}
	return &evaluation.Outcome{Token: "a.b.c", Payload: json.RawMessage(`{}`), PolicyLabel: "p@1"}, nil
}

const adminToken = "secret-token"

func authorize(_ context.Context, bearer string, t tenant.Name, permission string) (Admin, error) {
	switch {
	case bearer == "":
		return Admin{}, problem.New(http.StatusUnauthorized, problem.AdminAccess, "no token")
	case bearer != adminToken || t == "forbidden":
		return Admin{}, problem.New(http.StatusForbidden, problem.AdminAccess, "may not %s", permission)
	}
	return Admin{Subject: "alice", Role: "admin"}, nil
}

// start serves over TLS or in the clear, with HTTP/2 and HTTP/1.1 on one port.
func start(t *testing.T, plain bool, change func(*Options)) (string, *http.Client) {
	t.Helper()
	k := newKeeper()
	o := Options{
		Evaluator: &fixed{}, Policies: k, References: k, Recorder: k, Authorize: authorize, MaxBody: 1 << 20, Audience: "as",
		Enter: func(_ context.Context, t tenant.Name) *problem.Error {
			if t == "disabled" {
				return problem.New(http.StatusNotFound, problem.InvalidPath, "no such tenant")
			}
			return nil
		},
		JWKS:   func(context.Context) (jose.JSONWebKeySet, error) { return jose.JSONWebKeySet{}, nil },
		Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }, Rand: rand.Reader,
	}
	change(&o)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// As the trustee does: a tenant in the URL is stripped.
		if rest, ok := strings.CutPrefix(r.URL.Path, "/tenants/acme"); ok {
			r.URL.Path = rest
			r = r.WithContext(tenant.With(r.Context(), "acme"))
		}
		s.ServeHTTP(w, r)
	}))
	srv.EnableHTTP2 = true
	if plain {
		var p http.Protocols
		p.SetHTTP1(true)
		p.SetUnencryptedHTTP2(true)
		srv.Config.Protocols = &p
		srv.Start()
	} else {
		srv.StartTLS()
	}
	t.Cleanup(srv.Close)
	return srv.URL, srv.Client()
}

func dial(t *testing.T, url string, client *http.Client) *grpc.ClientConn {
	t.Helper()
	creds := insecure.NewCredentials()
	host, ok := strings.CutPrefix(url, "https://")
	if ok {
		transport, _ := client.Transport.(*http.Transport)
		creds = credentials.NewTLS(transport.TLSClientConfig.Clone())
	} else {
		host = strings.TrimPrefix(url, "http://")
	}
	conn, err := grpc.NewClient(host, grpc.WithTransportCredentials(creds), grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", a)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

type answer struct {
	status int
	header http.Header
	body   string
}

func do(t *testing.T, c *http.Client, method, url, body, bearer string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
