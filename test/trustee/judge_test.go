package tests

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/trustee/api/attestation"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
)

// judge asks a trustee's attestation service as a foreign key broker does, for
// one tenant.
type judge struct {
	*site

	tenant string
	grpc   attestation.AttestationServiceClient
}

// appraised is what a token says of one environment.
type appraised struct {
	Status   string         `json:"ear.status"`
	Vector   map[string]int `json:"ear.trustworthiness-vector"`
	Findings []struct {
		Rule string `json:"rule"`
	} `json:"ear.coffer.findings"`
	Evidence map[string]any `json:"ear.veraison.annotated-evidence"`
}

// rules are those of the findings, each once.
func (a appraised) rules() []string {
	var out []string
	for _, f := range a.Findings {
		out = append(out, f.Rule)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// claim follows a path with slashes through the claims, as policies do; numbers
// are json.Number.
func (a appraised) claim(name tee.Name, path string) any {
	v := a.Evidence[string(name)]
	for path != "" {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		if whole, ok := m[path]; ok {
			return whole
		}
		var first string
		first, path, _ = strings.Cut(path, "/")
		v = m[first]
	}
	return v
}

// judge opens the attestation service for a tenant, which it makes.
func (s *site) judge(tenant string) *judge {
	s.t.Helper()
	s.must(s.admin("").CreateTenant(s.t.Context(), tenant, ""))
	return s.again(tenant)
}

// again is judge for a tenant that there is.
func (s *site) again(tenant string) *judge {
	s.t.Helper()
	conn, err := grpc.NewClient(s.service, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots(s.root), Time: s.clock.now, MinVersion: tls.VersionTLS13})))
	s.must(err)
	s.t.Cleanup(func() { _ = conn.Close() })
	return &judge{s, tenant, attestation.NewAttestationServiceClient(conn)}
}

// with is the judge for a subtest.
func (j *judge) with(t *testing.T) *judge {
	s := *j.site
	s.t = t
	return &judge{&s, j.tenant, j.grpc}
}

// evaluate sends evidence by REST and by gRPC. Both must come to the same; what
// REST answers is returned.
func (j *judge) evaluate(name tee.Name, evidence json.RawMessage, reportData []byte) (map[string]appraised, *kbs.StatusError) {
	j.t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	doc, err := json.Marshal(map[string]any{"verification_requests": []any{
		map[string]any{"tee": name, "evidence": b64(evidence), "runtime_data": map[string]string{"raw": b64(reportData)}},
	}})
	j.must(err)
	rest := j.do(j.http(), "POST", "https://"+j.service+"/tenants/"+j.tenant+"/attestation", "", string(doc))
	answer, err := j.grpc.AttestationEvaluate(metadata.AppendToOutgoingContext(j.t.Context(), "coffer-tenant", j.tenant), &attestation.AttestationRequest{
		VerificationRequests: []*attestation.IndividualAttestationRequest{{
			Tee: string(name), Evidence: b64(evidence), RuntimeData: &attestation.IndividualAttestationRequest_RawRuntimeData{RawRuntimeData: b64(reportData)},
		}},
	})
	if rest.status != http.StatusOK {
		e := kbs.NewStatusError("POST /attestation", rest.status, []byte(rest.body))
		want := map[int]codes.Code{http.StatusForbidden: codes.PermissionDenied, http.StatusServiceUnavailable: codes.Unavailable, http.StatusBadRequest: codes.InvalidArgument}[rest.status]
		if status.Code(err) != want || want == codes.OK {
			j.t.Fatalf("REST: %d %s; gRPC: %v", rest.status, rest.body, err)
		}
		if rest.status == http.StatusServiceUnavailable && rest.header.Get("Retry-After") == "" {
			j.t.Errorf("503 without Retry-After: %s", rest.body)
		}
		return nil, e
	}
	if err != nil {
		j.t.Fatalf("REST answers, gRPC: %v", err)
	}
	out := j.submods(rest.body)
	for name, m := range j.submods(answer.GetAttestationToken()) {
		if m.Status != out[name].Status || !slices.Equal(m.rules(), out[name].rules()) {
			j.t.Errorf("%s: by gRPC %s %v, by REST %s %v", name, m.Status, m.rules(), out[name].Status, out[name].rules())
		}
	}
	return out, nil
}

// submods verifies a token and reads it.
func (j *judge) submods(token string) map[string]appraised {
	j.t.Helper()
	set := j.keys("https://" + j.service + "/.well-known/jwks.json")
	sig, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	j.must(err)
	var c struct {
		jwt.Claims

		Tenant  string          `json:"coffer.tenant"`
		Submods json.RawMessage `json:"submods"`
	}
	j.must(sig.Claims(set, &c), c.Validate(jwt.Expected{Issuer: "coffer-trustee", AnyAudience: jwt.Audience{"coffer-attestation-service"}, Time: j.clock.now()}))
	if c.Tenant != j.tenant {
		j.t.Errorf("token of tenant %q, want %q", c.Tenant, j.tenant)
	}
	var out map[string]appraised
	d := json.NewDecoder(strings.NewReader(string(c.Submods)))
	d.UseNumber()
	j.must(d.Decode(&out))
	return out
}

// denied demands a refusal that names a check.
func (j *judge) denied(what string, e *kbs.StatusError, status int, check string) {
	j.t.Helper()
	if e == nil {
		j.t.Errorf("%s: got a token", what)
		return
	}
	for _, r := range e.Info.Reasons {
		if e.Status == status && r.Rule == check {
			return
		}
	}
	j.t.Errorf("%s: got %d %+v; want %d %s", what, e.Status, e.Info, status, check)
}

// flip changes one bit of a byte string inside a JSON document: an array of
// numbers, hex, base64 or base64url.
func flip(t testing.TB, doc json.RawMessage, path string, i int) json.RawMessage {
	t.Helper()
	var top any
	if err := json.Unmarshal(doc, &top); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(path, "/")
	at := top
	step := func(v any, key string) any {
		if list, ok := v.([]any); ok && key == "0" {
			return list[0]
		}
		m, ok := v.(map[string]any)
		if !ok || m[key] == nil {
			t.Fatalf("%s: %s is not there", path, key)
		}
		return m[key]
	}
	for _, key := range parts[:len(parts)-1] {
		at = step(at, key)
	}
	last := parts[len(parts)-1]
	switch v := step(at, last).(type) {
	case []any:
		n, ok := v[i].(float64)
		if !ok {
			t.Fatalf("%s: no bytes", path)
		}
		v[i] = float64(byte(n) ^ 1)
	case string:
		at.(map[string]any)[last] = flipText(t, v, i)
	default:
		t.Fatalf("%s: no bytes", path)
	}
	out, err := json.Marshal(top)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func flipText(t testing.TB, text string, i int) string {
	t.Helper()
	for _, c := range []struct {
		decode func(string) ([]byte, error)
		encode func([]byte) string
	}{
		{hex.DecodeString, hex.EncodeToString},
		{base64.StdEncoding.DecodeString, base64.StdEncoding.EncodeToString},
		{base64.URLEncoding.DecodeString, base64.URLEncoding.EncodeToString},
		{base64.RawURLEncoding.DecodeString, base64.RawURLEncoding.EncodeToString},
	} {
		if raw, err := c.decode(text); err == nil {
			raw[i] ^= 1
			return c.encode(raw)
		}
	}
	t.Fatalf("%.40q: neither hex nor base64", text)
	return ""
}

// vector reads published evidence of a package.
func vector(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../tee", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// published fills a directory with collateral as the vendors published it, in
// the form in which somebody keeps what they downloaded.
func published(t testing.TB, intel ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range append([]string{"chain_platform_ca.pem", "chain_signing_2018.pem", "chain_signing_2025.pem"}, intel...) {
		write(t, filepath.Join(dir, name), string(dcaptest.File(t, name)))
	}
	chip := filepath.Join(dir, "NZA9T14052605")
	if err := os.Mkdir(chip, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(chip, "hsk_cek.cert"), string(vector(t, "csv/testdata/hsk_cek.cert")))
	return dir
}

// intel2023 is Intel's collateral of June 2023, intelNow the newest of each kind.
func intel2023() []string {
	return []string{"tcb_info_tdx_50806f000000_2023-06.json", "qe_identity_tdx_2023-06.json", "pck_crl_platform_2023-06.der", "root_crl_2023.der"}
}

func intelNow() []string {
	return []string{
		"tcb_info_tdx_50806f000000_2023-06.json", "tcb_info_tdx_90c06f000000_2026-02.json", "tcb_info_tdx_00a06d080000_2025-10.json",
		"qe_identity_tdx_2025-10.json", "pck_crl_platform_2023-06.der", "root_crl_2023.der",
	}
}
