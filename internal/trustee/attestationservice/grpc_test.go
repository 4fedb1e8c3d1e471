package attestationservice

import (
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/trustee/api/attestation"
	"github.com/coffer-project/coffer/internal/trustee/api/reference"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

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
	disabled := metadata.AppendToOutgoingContext(t.Context(), tenantKey, "disabled")
	_, err = as.AttestationEvaluate(disabled, &attestation.AttestationRequest{})
	code("disabled tenant", err, codes.NotFound)
	_, err = rv.ListReferenceValues(disabled, &reference.ReferenceValueListRequest{})
	code("reading of a disabled tenant", err, codes.NotFound)
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
	if r := k.last(t); r.Action != "reference.register" || !strings.HasPrefix(r.Resource, "coffer:///reference-values/") || r.Subject != "alice" {
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
