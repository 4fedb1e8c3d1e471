package broker

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/kbs"
)

// TestTEEKey: tokens of other attestation services keep the guest's key
// elsewhere than ours do, and a token without one says so.
func TestTEEKey(t *testing.T) {
	t.Parallel()
	const key = `{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"tNohxSs01t6QA2tHxfaZxuqkPIlMk-hulsgR0bHAgK0","y":"A7aRK_Dzx0ShxvIN-K6r787V6xm68vMBiPTciwE0Ysw"}`
	for name, payload := range map[string]string{
		"ours":       `{"submods":{"cpu0":{"ear.veraison.annotated-evidence":{"runtime_data_claims":{"tee-pubkey":` + key + `}}}}}`,
		"customized": `{"customized_claims":{"runtime_data":{"tee-pubkey":` + key + `}}}`,
		"tdx":        `{"tdx":{"attester_runtime_data":{"tee-pubkey":` + key + `}}}`,
		"top":        `{"tee-pubkey":` + key + `}`,
	} {
		got, err := teeKey(json.RawMessage(payload))
		if err != nil || got.Alg != kbs.AlgECDH || !strings.HasPrefix(got.X, "tNohxSs01t6Q") {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, payload := range []string{`{}`, `[]`, `{"submods":{"cpu0":{}}}`, `{"tee-pubkey":"x"}`} {
		if _, err := teeKey(json.RawMessage(payload)); err == nil || !strings.Contains(err.Error(), "tee-pubkey") {
			t.Errorf("%s: %v", payload, err)
		}
	}
}
