package broker

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/token"
	"github.com/coffer-project/coffer/kbs"
)

func simulatedPart(m ear.Submod) bool {
	var e struct {
		Simulated *bool `json:"simulated"`
	}
	// A token that does not say is recorded as the worse.
	return json.Unmarshal(m.Evidence, &e) != nil || e.Simulated == nil || *e.Simulated
}

// teeOf is the CPU's TEE: the member of its evidence that is not one of ours.
func teeOf(c *ear.Claims) string {
	var e map[string]json.RawMessage
	if json.Unmarshal(c.Submods[ear.CPU].Evidence, &e) != nil {
		return ""
	}
	var names []string
	for name, v := range e {
		if !slices.Contains([]string{"runtime_data_claims", "init_data_claims"}, name) && len(v) > 0 && v[0] == '{' {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// teeKey is the key in the token's payload, which the CPU's evidence is bound
// to. Tokens of other attestation services keep it elsewhere than ours.
func teeKey(payload json.RawMessage) (kbs.TEEPubKey, error) {
	key, ok := token.TEEKey(payload)
	if !ok {
		return kbs.TEEPubKey{}, errors.New("token: tee-pubkey: expected the guest's key as a JWK at submods.cpu0 or where other attestation services put it, got none: attest with a service whose tokens carry it")
	}
	return kbs.ParseTEEPubKey(key)
}
