package attestationservice

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/trustee/api/attestation"
	"github.com/coffer-project/coffer/internal/trustee/api/reference"
	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/tee"
)

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
