package attestationservice

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/coffer-project/coffer/internal/trustee/api/attestation"
	"github.com/coffer-project/coffer/internal/trustee/api/reference"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/internal/trustee/token"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/sample"
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

func (k *keeper) Register(_ context.Context, _ tenant.Name, message []byte, _ string) error {
	list, err := refvalues.ParseMessage(message)
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

// The whole way: sample evidence in, a token out that the published keys
// verify and that is worth nothing at the trustee's own resources.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	k := newKeeper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := token.New(t.Context(), token.Options{Keys: token.Static(private), Issuer: "https://as", Audience: "kbs", Lifetime: time.Minute, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	engine := evaluation.New(evaluation.Options{
		Verifiers: map[tee.Name]tee.Verifier{tee.Sample: sample.NewVerifier()}, Tokens: tokens, MaxConcurrent: 2, Build: "test",
		Appraiser: appraisal.New(appraisal.Options{Policies: noTexts{k}, References: k, Now: func() time.Time { return now }, Verbose: true}),
	})
	for _, plain := range []bool{false, true} {
		url, client := start(t, plain, func(o *Options) {
			o.Evaluator, o.Recorder, o.JWKS = engine, k, tokens.JWKS
			o.ClientAddr = func(*http.Request) string { return "192.0.2.1" }
		})
		runtime := `{"tee-pubkey":{"kty":"EC"},"nonce":"AAEC"}`
		canonical, _, err := canonicalize([]byte(runtime))
		if err != nil {
			t.Fatal(err)
		}
		digest, err := sum("sha256", canonical)
		if err != nil {
			t.Fatal(err)
		}
		evidence := b64(`{"svn":"1","report_data":"` + base64.StdEncoding.EncodeToString(digest) + `"}`)
		a := do(t, client, "POST", url+"/tenants/acme/attestation", `{"verification_requests":[{"tee":"sample","evidence":"`+evidence+`","runtime_data":{"structured":`+runtime+`},"runtime_data_hash_algorithm":"sha256"}],"policy_ids":["default"]}`, "")
		if a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		var set jose.JSONWebKeySet
		if err := json.Unmarshal([]byte(do(t, client, "GET", url+"/.well-known/jwks.json", "", "").body), &set); err != nil || len(set.Keys) != 1 {
			t.Fatalf("JWKS %+v, %v", set, err)
		}
		sig, err := jose.ParseSignedCompact(a.body, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		payload, err := sig.Verify(set.Keys[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"aud":["as"]`, `"iss":"https://as"`, `"runtime_data_claims":{"nonce":"AAEC","tee-pubkey":{"kty":"EC"}}`, `"coffer.tenant":"acme"`, `"cpu0"`} {
			if !strings.Contains(string(payload), want) {
				t.Errorf("payload %s lacks %s", payload, want)
			}
		}
		if _, _, err := tokens.Verify(t.Context(), "acme", a.body); err == nil {
			t.Error("the trustee takes the service's token for its own")
		}
		if r := k.last(t); !r.Granted || r.Tenant != "acme" || r.TEE != "sample" || r.EARStatus != "contraindicated" || r.Client != "192.0.2.1" || len(r.Claims) == 0 || r.Session == "" {
			t.Errorf("record %+v", r)
		}
		// The same by gRPC, with evidence that is bound to something else.
		_, err = attestation.NewAttestationServiceClient(dial(t, url, client)).AttestationEvaluate(
			metadata.AppendToOutgoingContext(t.Context(), tenantKey, "acme"), &attestation.AttestationRequest{
				VerificationRequests: []*attestation.IndividualAttestationRequest{{
					Tee: "sample", Evidence: evidence, RuntimeData: &attestation.IndividualAttestationRequest_StructuredRuntimeData{StructuredRuntimeData: runtime},
				}},
			})
		st, _ := status.FromError(err)
		if st.Code() != codes.PermissionDenied || len(st.Details()) != 1 {
			t.Fatalf("got %v, details %v", err, st.Details())
		}
		detail, _ := st.Details()[0].(*structpb.Struct)
		if rule := detail.GetFields()["reason"].GetStructValue().GetFields()["rule"].GetStringValue(); !strings.HasPrefix(rule, "sample.") {
			t.Errorf("detail %v", detail)
		}
		if r := k.last(t); r.Granted || r.Tenant != "acme" || r.Status != http.StatusForbidden || len(r.Reasons) != 1 {
			t.Errorf("record %+v", r)
		}
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	f := &fixed{}
	url, client := start(t, false, func(o *Options) { o.Evaluator = f })
	initTOML := "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"a\" = \"b\"\n"
	tomlJSON, err := json.Marshal(initTOML)
	if err != nil {
		t.Fatal(err)
	}
	one := func(members string) string {
		return `{"verification_requests":[{"tee":"snp","evidence":"e30",` + members + `}]}`
	}
	raw := `"runtime_data":{"raw":"` + b64("0123456789abcdef0123456789abcdef") + `"}`
	for _, tc := range []struct {
		name, body string
		// want is a part of the detail; empty: good.
		want  string
		check func(evaluation.Request) bool
	}{
		{"raw", one(raw), "", func(r evaluation.Request) bool {
			return string(r.Primary.ReportData) == "0123456789abcdef0123456789abcdef" && r.Primary.Runtime == nil && r.AnyClass && r.Audience == "as" && r.Policy == "" && len(r.Session) == 32
		}},
		{"structured", one(`"runtime_data":{"structured":{"b":1,"a":[2]}}`), "", func(r evaluation.Request) bool {
			return len(r.Primary.ReportData) == 48 && len(r.Primary.Runtime) == 2
		}},
		{"sha512", one(`"runtime_data":{"structured":{}},"runtime_data_hash_algorithm":"sha512"`), "", func(r evaluation.Request) bool { return len(r.Primary.ReportData) == 64 }},
		{"nulls", one(`"runtime_data":{"raw":null,"structured":{"a":1}},"init_data":null,"runtime_data_hash_algorithm":null`), "", func(r evaluation.Request) bool {
			return len(r.Primary.ReportData) == 48 && r.Primary.InitData == nil
		}},
		{"initdata TOML", one(raw + `,"init_data":{"init_data_toml":` + string(tomlJSON) + `}`), "", func(r evaluation.Request) bool {
			return len(r.Primary.InitData.Digest) == 32 && r.Primary.InitData.Document.Data["a"] == "b"
		}},
		{"initdata digest", one(raw + `,"init_data":{"init_data_digest":"` + b64("0123456789abcdef") + `"}`), "", func(r evaluation.Request) bool {
			return string(r.Primary.InitData.Digest) == "0123456789abcdef" && r.Primary.InitData.Document == nil
		}},
		{"device first", `{"verification_requests":[{"tee":"nvidia","evidence":"e30",` + raw + `},{"tee":"tdx","evidence":"e30",` + raw + `},{"tee":"nvidia-dpu","evidence":"e30",` + raw + `}],"policy_ids":["strict"]}`, "", func(r evaluation.Request) bool {
			return r.Primary.TEE == tee.TDX && len(r.Devices) == 2 && r.Devices[0].TEE == tee.NVIDIA && r.Devices[1].TEE == "nvidia-dpu" && r.Policy == "strict"
		}},
		{"device alone", `{"verification_requests":[{"tee":"sampledevice","evidence":"e30",` + raw + `}]}`, "", func(r evaluation.Request) bool {
			return r.Primary.TEE == tee.SampleDevice && len(r.Devices) == 0
		}},
		{"old name", `{"verification_requests":[{"tee":"azsnpvtpm","evidence":"e30",` + raw + `}]}`, "", func(r evaluation.Request) bool { return r.Primary.TEE == tee.AzureSNPVTPM }},
		{"no runtime data", `{"verification_requests":[{"tee":"snp","evidence":"e30"}]}`, "verification_requests[0].runtime_data: is missing", nil},
		{"empty runtime data", one(`"runtime_data":{}`), "runtime_data: is missing", nil},
		{"both", one(`"runtime_data":{"raw":"AAAA","structured":{}}`), "got both", nil},
		{"raw too long", one(`"runtime_data":{"raw":"` + b64(strings.Repeat("x", 65)) + `"}`), "1 to 64 bytes, got 65", nil},
		{"raw empty", one(`"runtime_data":{"raw":""}`), "1 to 64 bytes, got 0", nil},
		{"raw padded", one(`"runtime_data":{"raw":"AA=="}`), "unpadded base64url", nil},
		{"structured text", one(`"runtime_data":{"structured":"x"}`), "expected a JSON object", nil},
		{"algorithm", one(`"runtime_data":{"structured":{}},"runtime_data_hash_algorithm":"sm3"`), `got "sm3"`, nil},
		{"initdata both", one(raw + `,"init_data":{"init_data_toml":"","init_data_digest":"AAAA"}`), "got both", nil},
		{"initdata malformed", one(raw + `,"init_data":{"init_data_toml":"x"}`), "init_data_toml", nil},
		{"initdata digest empty", one(raw + `,"init_data":{"init_data_digest":""}`), "1 to 64 bytes, got 0", nil},
		{"unknown TEE", `{"verification_requests":[{"tee":"x","evidence":"e30",` + raw + `}]}`, `got "x"`, nil},
		{"evidence is no base64", `{"verification_requests":[{"tee":"snp","evidence":"{}",` + raw + `}]}`, "evidence: expected unpadded base64url", nil},
		{"evidence is no JSON", `{"verification_requests":[{"tee":"snp","evidence":"` + b64("{") + `",` + raw + `}]}`, "evidence: expected the base64url of JSON", nil},
		{"two policies", `{"verification_requests":[{"tee":"snp","evidence":"e30",` + raw + `}],"policy_ids":["a","b"]}`, "policy_ids: expected at most one, got 2", nil},
		{"policy id", `{"verification_requests":[{"tee":"snp","evidence":"e30",` + raw + `}],"policy_ids":["../a"]}`, "policy_ids[0]", nil},
		{"none", `{"verification_requests":[]}`, "expected 1 to 64, got 0", nil},
		{"too many", `{"verification_requests":[` + strings.Repeat(`{"tee":"snp","evidence":"e30",`+raw+`},`, 64) + `{"tee":"snp","evidence":"e30",` + raw + `}]}`, "got 65", nil},
		{"unknown member", one(raw + `,"nonce":"x"`), "nonce", nil},
		{"member twice", one(raw + `,` + raw), "runtime_data", nil},
		{"no JSON", "x", "attestation request", nil},
	} {
		a := do(t, client, "POST", url+"/attestation", tc.body, "")
		if tc.want == "" {
			if a.status != http.StatusOK || a.body != "a.b.c" || !tc.check(f.got) {
				t.Errorf("%s: %d %s, asked %+v", tc.name, a.status, a.body, f.got)
			}
			continue
		}
		var info struct{ Type, Detail string }
		if err := json.Unmarshal([]byte(a.body), &info); err != nil || a.status != http.StatusBadRequest || !strings.Contains(info.Detail, tc.want) || info.Type == "" {
			t.Errorf("%s: %d %s", tc.name, a.status, a.body)
		}
	}
	if a := do(t, client, "POST", url+"/attestation", strings.Repeat("x", 2<<20), ""); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("too large: %d", a.status)
	}
}

// Both interfaces answer with the status that fits.
func TestStatuses(t *testing.T) {
	t.Parallel()
	for want, c := range map[int]codes.Code{
		http.StatusBadRequest: codes.InvalidArgument, http.StatusForbidden: codes.PermissionDenied, http.StatusServiceUnavailable: codes.Unavailable,
		http.StatusInternalServerError: codes.Internal, http.StatusTooManyRequests: codes.ResourceExhausted, http.StatusNotFound: codes.NotFound,
		http.StatusConflict: codes.FailedPrecondition,
	} {
		url, client := start(t, true, func(o *Options) {
			o.Evaluator = &fixed{e: problem.New(want, problem.Attestation, "because")}
		})
		a := do(t, client, "POST", url+"/attestation", `{"verification_requests":[{"tee":"snp","evidence":"e30","runtime_data":{"raw":"AAAA"}}]}`, "")
		if a.status != want || !strings.Contains(a.body, "because") {
			t.Errorf("REST: %d %s, want %d", a.status, a.body, want)
		}
		_, err := attestation.NewAttestationServiceClient(dial(t, url, client)).AttestationEvaluate(t.Context(), &attestation.AttestationRequest{
			VerificationRequests: []*attestation.IndividualAttestationRequest{{Tee: "snp", Evidence: "e30", RuntimeData: &attestation.IndividualAttestationRequest_RawRuntimeData{RawRuntimeData: "AAAA"}}},
		})
		if status.Code(err) != c || !strings.Contains(err.Error(), "because") {
			t.Errorf("gRPC: %v, want %v", err, c)
		}
	}
}

func TestRESTAdministration(t *testing.T) {
	t.Parallel()
	k := newKeeper()
	url, client := start(t, false, func(o *Options) { o.Policies, o.Recorder = k, k })
	good := `{"policy_id":"default_cpu","policy":"` + b64("package policy\ntrust_claims := {}") + `"}`
	for _, tc := range []struct {
		name, method, path, body, bearer string
		status                           int
		want                             string
	}{
		{"no token", "POST", "/policy", good, "", 401, "no token"},
		{"other token", "POST", "/policy", good, "x", 403, "policy.write"},
		{"list without token", "GET", "/policy", "", "", 401, ""},
		{"get without token", "GET", "/policy/default_cpu", "", "", 401, ""},
		{"empty list", "GET", "/policy", "", adminToken, 200, "[]"},
		{"none", "GET", "/policy/default_cpu", "", adminToken, 404, "built-in"},
		{"set", "POST", "/policy", good, adminToken, 200, ""},
		{"list", "GET", "/policy", "", adminToken, 200, `[{"policy-id":"default_cpu"}]`},
		{"get", "GET", "/policy/default_cpu", "", adminToken, 200, "package policy"},
		{"other tenant's list", "GET", "/tenants/acme/policy", "", adminToken, 200, "[]"},
		{"get what cannot be", "GET", "/policy/a%00b", "", adminToken, 400, "policy id"},
		{"id", "POST", "/policy", `{"policy_id":"a/b","policy":""}`, adminToken, 400, "policy_id"},
		{"no base64", "POST", "/policy", `{"policy_id":"a","policy":"%"}`, adminToken, 400, "base64url"},
		{"no UTF-8", "POST", "/policy", `{"policy_id":"a","policy":"` + b64("\xff") + `"}`, adminToken, 400, "UTF-8"},
		{"no Rego", "POST", "/policy", `{"policy_id":"a","policy":"` + b64("package policy\nx") + `"}`, adminToken, 400, "rego"},
		{"no JSON", "POST", "/policy", `x`, adminToken, 400, "policy request"},
		{"unknown path", "GET", "/x", "", "", 404, "no such endpoint"},
		{"method", "DELETE", "/policy", "", adminToken, 405, "GET, POST"},
		{"method of attestation", "GET", "/attestation", "", "", 405, "POST"},
		{"healthz", "GET", "/healthz", "", "", 200, ""},
		{"challenge", "POST", "/challenge", `{"tee":"snp"}`, "", 200, ""},
		{"challenge with parameters", "POST", "/challenge", `{"tee":"tdx","tee_params":"x"}`, "", 200, ""},
		{"challenge for se", "POST", "/challenge", `{"tee":"se","tee_params":"x"}`, "", 501, "Secure Execution"},
		{"challenge for nothing", "POST", "/challenge", `{"tee":""}`, "", 400, "tee"},
		{"challenge malformed", "POST", "/challenge", `[]`, "", 400, "challenge request"},
	} {
		a := do(t, client, tc.method, url+tc.path, tc.body, tc.bearer)
		if a.status != tc.status || !strings.Contains(a.body, tc.want) {
			t.Errorf("%s: %d %s, want %d %s", tc.name, a.status, a.body, tc.status, tc.want)
		}
		if a.status == http.StatusUnauthorized && a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no WWW-Authenticate", tc.name)
		}
		if tc.name == "challenge" {
			if nonce, err := base64.StdEncoding.DecodeString(a.body); err != nil || len(nonce) != 32 {
				t.Errorf("challenge %q", a.body)
			}
		}
		if tc.name == "set" {
			if r := k.last(t); r.Kind != audit.KindAdmin || r.Subject != "alice" || r.Action != "policy.set" || !r.Granted {
				t.Errorf("record %+v", r)
			}
		}
	}
	if r := k.last(t); r.Granted || r.Status != http.StatusBadRequest {
		t.Errorf("record of a refused policy %+v", r)
	}
}

func TestGRPC(t *testing.T) {
	t.Parallel()
	k, f := newKeeper(), &fixed{}
	for i := range 2500 {
		name := "n" + strings.Repeat("0", 4-len(string(rune('a'+i%26)))) + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))
		k.refs[name] = refvalues.Reference{Name: name}
	}
	url, client := start(t, true, func(o *Options) { o.Evaluator, o.Policies, o.References, o.Recorder = f, k, k, k })
	conn := dial(t, url, client)
	as, rv := attestation.NewAttestationServiceClient(conn), reference.NewReferenceValueProviderServiceClient(conn)
	admin := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+adminToken)

	out, err := as.AttestationEvaluate(metadata.AppendToOutgoingContext(t.Context(), tenantKey, "acme"), &attestation.AttestationRequest{
		PolicyIds: []string{"p"},
		VerificationRequests: []*attestation.IndividualAttestationRequest{{
			Tee: "snp", Evidence: "e30", RuntimeData: &attestation.IndividualAttestationRequest_StructuredRuntimeData{StructuredRuntimeData: `{"a":1}`},
			InitData: &attestation.IndividualAttestationRequest_InitDataDigest{InitDataDigest: "AAAA"}, RuntimeDataHashAlgorithm: "sha512",
		}, {
			Tee: "nvidia", Evidence: "e30", RuntimeData: &attestation.IndividualAttestationRequest_RawRuntimeData{RawRuntimeData: "AAAA"},
			InitData: &attestation.IndividualAttestationRequest_InitDataToml{InitDataToml: "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n"},
		}},
	})
	if err != nil || out.GetAttestationToken() != "a.b.c" {
		t.Fatalf("%v, %v", out, err)
	}
	if r := f.got; r.Tenant != "acme" || r.Policy != "p" || len(r.Primary.ReportData) != 64 || len(r.Primary.InitData.Digest) != 3 || len(r.Devices) != 1 || r.Devices[0].InitData.Document == nil {
		t.Errorf("asked %+v", r)
	}
	code := func(what string, err error, want codes.Code) {
		t.Helper()
		if status.Code(err) != want {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	_, err = as.AttestationEvaluate(t.Context(), &attestation.AttestationRequest{VerificationRequests: []*attestation.IndividualAttestationRequest{{Tee: "snp", Evidence: "e30"}}})
	code("no runtime data", err, codes.InvalidArgument)
	if !strings.Contains(err.Error(), "runtime_data") {
		t.Error(err)
	}
	_, err = as.AttestationEvaluate(metadata.AppendToOutgoingContext(t.Context(), tenantKey, "../x"), &attestation.AttestationRequest{})
	code("tenant", err, codes.InvalidArgument)
	_, err = as.AttestationEvaluate(metadata.AppendToOutgoingContext(t.Context(), tenantKey, "a", tenantKey, "b"), &attestation.AttestationRequest{})
	code("two tenants", err, codes.InvalidArgument)
	_, err = as.AttestationEvaluate(t.Context(), &attestation.AttestationRequest{PolicyIds: []string{strings.Repeat("x", 2<<20)}})
	code("too large", err, codes.ResourceExhausted)

	set := &attestation.SetPolicyRequest{PolicyId: "default_gpu", Policy: b64("package policy")}
	_, err = as.SetAttestationPolicy(t.Context(), set)
	code("policy without token", err, codes.Unauthenticated)
	_, err = as.SetAttestationPolicy(metadata.AppendToOutgoingContext(admin, tenantKey, "forbidden"), set)
	code("policy of another tenant", err, codes.PermissionDenied)
	_, err = as.SetAttestationPolicy(admin, set)
	code("policy", err, codes.OK)
	_, err = as.SetAttestationPolicy(admin, &attestation.SetPolicyRequest{PolicyId: "x", Policy: b64("package x")})
	code("policy of another package", err, codes.InvalidArgument)
	c, err := as.GetAttestationChallenge(t.Context(), &attestation.ChallengeRequest{Inner: map[string]string{"tee": "snp", "tee_params": ""}})
	if nonce, err2 := base64.StdEncoding.DecodeString(c.GetAttestationChallenge()); err != nil || err2 != nil || len(nonce) != 32 {
		t.Errorf("challenge %v, %v", c, err)
	}
	_, err = as.GetAttestationChallenge(t.Context(), &attestation.ChallengeRequest{Inner: map[string]string{"tee": "se"}})
	code("challenge for se", err, codes.Unimplemented)

	query := func(ctx context.Context, name string) (*string, error) {
		r, err := rv.QueryReferenceValue(ctx, &reference.ReferenceValueQueryRequest{ReferenceValueId: name})
		if err != nil {
			return nil, err
		}
		return r.ReferenceValueResults, nil
	}
	if v, err := query(admin, "a"); err != nil || v == nil || *v != `["x"]` {
		t.Errorf("query: %v, %v", v, err)
	}
	if v, err := query(admin, "none"); err != nil || v != nil {
		t.Errorf("query of nothing: %v, %v", v, err)
	}
	if v, err := query(t.Context(), healthProbe); err != nil || v != nil {
		t.Errorf("probe: %v, %v", v, err)
	}
	_, err = query(t.Context(), "a")
	code("query without token", err, codes.Unauthenticated)
	_, err = query(admin, "a b")
	code("query of no name", err, codes.InvalidArgument)
	message := `{"version":"0.1.0","type":"sample","payload":"` + base64.StdEncoding.EncodeToString([]byte(`{"new":5}`)) + `"}`
	_, err = rv.RegisterReferenceValue(t.Context(), &reference.ReferenceValueRegisterRequest{Message: message})
	code("register without token", err, codes.Unauthenticated)
	_, err = rv.RegisterReferenceValue(admin, &reference.ReferenceValueRegisterRequest{Message: message})
	code("register", err, codes.OK)
	if v, err := query(admin, "new"); err == nil && v != nil {
		t.Logf("registered %s", *v)
	} else {
		t.Errorf("registered: %v, %v", v, err)
	}
	if r := k.last(t); r.Action != "reference.register" || r.Subject != "alice" {
		t.Errorf("record %+v", r)
	}
	_, err = rv.RegisterReferenceValue(admin, &reference.ReferenceValueRegisterRequest{Message: "{}"})
	code("register nonsense", err, codes.InvalidArgument)
	list, err := rv.ListReferenceValues(admin, &reference.ReferenceValueListRequest{})
	if err != nil || len(list.GetReferenceValueIds()) != len(k.refs) || !slices.IsSorted(list.GetReferenceValueIds()) {
		t.Errorf("list of %d, want %d: %v", len(list.GetReferenceValueIds()), len(k.refs), err)
	}
	h, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "attestation.AttestationService"})
	if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", h, err)
	}
	// The same port speaks plain HTTP/1.1.
	if a := do(t, client, "GET", url+"/.well-known/jwks.json", "", ""); a.status != http.StatusOK {
		t.Errorf("JWKS: %d", a.status)
	}
}

func TestOpenReads(t *testing.T) {
	t.Parallel()
	url, client := start(t, true, func(o *Options) { o.OpenReads = true })
	if a := do(t, client, "GET", url+"/policy", "", ""); a.status != http.StatusOK {
		t.Errorf("list: %d", a.status)
	}
	if a := do(t, client, "POST", url+"/policy", "{}", ""); a.status != http.StatusUnauthorized {
		t.Errorf("set: %d", a.status)
	}
	rv := reference.NewReferenceValueProviderServiceClient(dial(t, url, client))
	if r, err := rv.QueryReferenceValue(t.Context(), &reference.ReferenceValueQueryRequest{ReferenceValueId: "a"}); err != nil || r.GetReferenceValueResults() != `["x"]` {
		t.Errorf("query: %v, %v", r, err)
	}
}

// What cannot be recorded is not handed out, and says so where it was done.
func TestUnrecorded(t *testing.T) {
	t.Parallel()
	broken := newKeeper()
	broken.err = errors.New("disk is full")
	url, client := start(t, false, func(o *Options) { o.Recorder = broken })
	a := do(t, client, "POST", url+"/attestation", `{"verification_requests":[{"tee":"snp","evidence":"e30","runtime_data":{"raw":"AAAA"}}]}`, "")
	if a.status != http.StatusInternalServerError || strings.Contains(a.body, "a.b.c") || strings.Contains(a.body, "disk") {
		t.Errorf("attestation: %d %s", a.status, a.body)
	}
	a = do(t, client, "POST", url+"/policy", `{"policy_id":"a","policy":"`+b64("package policy")+`"}`, adminToken)
	if a.status != http.StatusInternalServerError || !strings.Contains(a.body, "could not be recorded") {
		t.Errorf("policy: %d %s", a.status, a.body)
	}
	if _, err := New(Options{}); err == nil {
		t.Error("no audience: want an error")
	}
}
