package attestationservice

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/coffer-project/coffer/internal/trustee/api/attestation"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/token"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/sample"
)

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
