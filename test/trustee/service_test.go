package tests

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/trustee/api/attestation"
	"github.com/coffer-project/coffer/internal/trustee/api/reference"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee/snp"
)

// keys fetches a JWK set.
func (s *site) keys(url string) jose.JSONWebKeySet {
	s.t.Helper()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(s.do(s.http(), "GET", url, "", "").body), &set); err != nil || len(set.Keys) == 0 {
		s.t.Fatalf("JWKS %+v, %v", set, err)
	}
	return set
}

// claims are what matters here of an attestation token.
type claims struct {
	jwt.Claims

	Tenant  string `json:"coffer.tenant"`
	Submods map[string]struct {
		Status   string         `json:"ear.status"`
		Evidence map[string]any `json:"ear.veraison.annotated-evidence"`
	} `json:"submods"`
}

// verify is what a relying party does with a token.
func verify(t *testing.T, set jose.JSONWebKeySet, token, audience string) claims {
	t.Helper()
	sig, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256, jose.ES384})
	if err != nil {
		t.Fatal(err)
	}
	if len(set.Key(sig.Headers[0].KeyID)) != 1 {
		t.Fatalf("kid %q is not in %+v", sig.Headers[0].KeyID, set)
	}
	var c claims
	if err := sig.Claims(set, &c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(jwt.Expected{Issuer: "coffer-trustee", AnyAudience: jwt.Audience{audience}, Time: time.Now()}); err != nil {
		t.Error(err)
	}
	if c.ID == "" || c.NotBefore == nil || c.Expiry == nil {
		t.Errorf("token lacks jti, nbf or exp: %+v", c.Claims)
	}
	return c
}

// TestAttestationService has the attestation service judge real and simulated
// evidence for a key broker that is not ours.
func TestAttestationService(t *testing.T) {
	t.Parallel()
	// Nobody has published a revocation list of AMD's with the evidence.
	s := launch(t, the.plain, "", "attestation_service.listen = \"127.0.0.1:0\"\ncollateral.offline = true\ntee.snp.check_revocation = false\n")
	s.populate("")
	base := "https://" + s.service
	client := s.http()
	b64 := base64.RawURLEncoding.EncodeToString
	conn, err := grpc.NewClient(s.service, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots(s.root), MinVersion: tls.VersionTLS13})))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	as := attestation.NewAttestationServiceClient(conn)
	set := s.keys(base + "/.well-known/jwks.json")
	const audience = "coffer-attestation-service"

	// A software TEE by gRPC, with runtime data that the service hashes.
	runtime := `{"nonce":"AAEC","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"tNohxSs01t6QA2tHxfaZxuqkPIlMk-hulsgR0bHAgK0","y":"A7aRK_Dzx0ShxvIN-K6r787V6xm68vMBiPTciwE0Ysw"}}`
	report, err := kbs.RuntimeDigest(kbs.SHA384, "AAEC", kbs.TEEPubKey{
		KTY: "EC", Crv: "P-256", Alg: kbs.AlgECDH, X: "tNohxSs01t6QA2tHxfaZxuqkPIlMk-hulsgR0bHAgK0", Y: "A7aRK_Dzx0ShxvIN-K6r787V6xm68vMBiPTciwE0Ysw",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := pod(t, document, "").Evidence(t.Context(), report)
	if err != nil {
		t.Fatal(err)
	}
	one := &attestation.IndividualAttestationRequest{
		Tee: "snp", Evidence: b64(evidence),
		RuntimeData: &attestation.IndividualAttestationRequest_StructuredRuntimeData{StructuredRuntimeData: runtime},
		InitData:    &attestation.IndividualAttestationRequest_InitDataToml{InitDataToml: document},
	}
	answer, err := as.AttestationEvaluate(t.Context(), &attestation.AttestationRequest{VerificationRequests: []*attestation.IndividualAttestationRequest{one}})
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(s.log.String()))
	}
	token := answer.GetAttestationToken()
	c := verify(t, set, token, audience)
	// Simulated: good as what it is, and no better.
	if cpu := c.Submods["cpu0"]; cpu.Status != "warning" || c.Tenant != "default" {
		t.Errorf("%+v", c)
	}
	// Anybody may call the service with a nonce of their own: its tokens
	// release nothing here.
	if x := s.do(client, "GET", "/kbs/v0/resource/demo/key/1", token, ""); x.status != http.StatusUnauthorized || !strings.Contains(x.body, "aud") {
		t.Errorf("at the key broker: %d %s", x.status, x.body)
	}
	// And the other way round: a handshake's token is not the service's.
	guest := s.good("")
	s.must(guest.Attest(t.Context()))
	if c := verify(t, s.keys("/.well-known/jwks.json"), guest.HeldToken(), "coffer-trustee"); c.Audience.Contains(audience) {
		t.Errorf("aud %v", c.Audience)
	}

	// Bound to something else.
	one.RuntimeData = &attestation.IndividualAttestationRequest_StructuredRuntimeData{StructuredRuntimeData: strings.Replace(runtime, "AAEC", "AAED", 1)}
	_, err = as.AttestationEvaluate(t.Context(), &attestation.AttestationRequest{VerificationRequests: []*attestation.IndividualAttestationRequest{one}})
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "report_data") {
		t.Errorf("other runtime data: %v", err)
	}

	// A real processor's report, by REST: genuine, and not affirmed, because
	// nobody registered what it measured.
	raw, err := os.ReadFile("../../tee/snp/testdata/test-report.bin")
	if err != nil {
		t.Fatal(err)
	}
	vcek, err := os.ReadFile("../../tee/snp/testdata/test-vcek.der")
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := snp.DecodeReport(raw)
	if err != nil {
		t.Fatal(err)
	}
	e, err := snp.NewEvidence(raw, []snp.Certificate{{Type: snp.CertVCEK, Data: vcek}})
	if err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	request := func(doc, reportData []byte) string {
		return `{"verification_requests":[{"tee":"snp","evidence":"` + b64(doc) + `","runtime_data":{"raw":"` + b64(reportData) + `"}}],"policy_ids":["default"]}`
	}
	x := s.do(client, "POST", base+"/attestation", "", request(doc, decoded.ReportData[:]))
	if x.status != http.StatusOK {
		t.Fatalf("real evidence: %d %s", x.status, x.body)
	}
	c = verify(t, set, x.body, audience)
	if cpu := c.Submods["cpu0"]; cpu.Status == "affirming" || cpu.Evidence["simulated"] == true {
		t.Errorf("real evidence: %+v", cpu)
	}
	if x = s.do(client, "POST", base+"/attestation", "", request(doc, make([]byte, 64))); x.status != http.StatusForbidden || !strings.Contains(x.body, "snp.report_data") {
		t.Errorf("real evidence, other report data: %d %s", x.status, x.body)
	}
	forged := strings.Replace(string(doc), `"guest_svn":`, `"guest_svn":1`, 1)
	if x = s.do(client, "POST", base+"/attestation", "", request([]byte(forged), decoded.ReportData[:])); x.status != http.StatusForbidden || !strings.Contains(x.body, "snp.signature") {
		t.Errorf("forged evidence: %d %s", x.status, x.body)
	}

	// A request of the ecosystem's own tests: bound to nothing, which is not
	// accepted here, and of an enclave that can be debugged.
	sgx, err := os.ReadFile("testdata/coco_as_request.json")
	if err != nil {
		t.Fatal(err)
	}
	if x = s.do(client, "POST", base+"/attestation", "", string(sgx)); x.status != http.StatusBadRequest || !strings.Contains(x.body, "runtime_data") {
		t.Errorf("sgx: %d %s", x.status, x.body)
	}
	bound := strings.Replace(string(sgx), `"tee": "sgx",`, `"tee": "sgx", "runtime_data": {"raw": "dGVzdA"},`, 1)
	if x = s.do(client, "POST", base+"/attestation", "", bound); x.status != http.StatusForbidden || !strings.Contains(x.body, "sgx.debug") {
		t.Errorf("sgx: %d %s", x.status, x.body)
	}
	// No nonce, no proof.
	if x = s.do(client, "POST", base+"/attestation", "", `{"verification_requests":[{"tee":"snp","evidence":"e30"}]}`); x.status != http.StatusBadRequest || !strings.Contains(x.body, "runtime_data") {
		t.Errorf("no runtime data: %d %s", x.status, x.body)
	}
	// The service's own administration takes an administrator.
	_, err = as.SetAttestationPolicy(t.Context(), &attestation.SetPolicyRequest{PolicyId: "default_cpu", Policy: b64([]byte("package policy"))})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("SetAttestationPolicy: %v", err)
	}
	_, err = reference.NewReferenceValueProviderServiceClient(conn).RegisterReferenceValue(t.Context(), &reference.ReferenceValueRegisterRequest{Message: `{}`})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("RegisterReferenceValue: %v", err)
	}

	// An id without a class would be stored and judge nothing.
	text := b64([]byte("package policy\ntrust_claims := {\"hardware\": 2}"))
	for id, want := range map[string]int{"default": http.StatusBadRequest, "_cpu": http.StatusBadRequest, "mine_cpu": http.StatusOK} {
		x = s.do(client, "POST", base+"/policy", adminToken(t, s), fmt.Sprintf(`{"policy_id":%q,"policy":%q}`, id, text))
		if x.status != want {
			t.Errorf("%s: %d %s", id, x.status, x.body)
		}
	}

	// Discovery leads to the keys.
	var found struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal([]byte(s.do(client, "GET", "/.well-known/openid-configuration", "", "").body), &found); err != nil || found.Issuer != "coffer-trustee" {
		t.Errorf("%+v, %v", found, err)
	}
	verify(t, s.keys(found.JWKS), token, audience)

	// Rotation: tokens of the old key stay good, new ones have the new key.
	key, err := s.admin("").RotateTokenKey(t.Context(), "ES384")
	s.must(err)
	verify(t, s.keys(base+"/.well-known/jwks.json"), token, audience)
	// Within seconds, at this replica as at others.
	eventually(t, "the new key signs", func() bool {
		guest := s.good("")
		s.must(guest.Attest(t.Context()))
		verify(t, s.keys(base+"/.well-known/jwks.json"), guest.HeldToken(), "coffer-trustee")
		sig, err := jwt.ParseSigned(guest.HeldToken(), []jose.SignatureAlgorithm{jose.ES384})
		return err == nil && sig.Headers[0].KeyID == key.KeyID
	})
	verify(t, s.keys(base+"/.well-known/jwks.json"), token, audience)
}
