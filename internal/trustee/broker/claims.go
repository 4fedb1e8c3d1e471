package broker

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/ear"
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

// teeKey is the key in the token, which the CPU's evidence is bound to.
func teeKey(c *ear.Claims) (kbs.TEEPubKey, error) {
	var e struct {
		Runtime struct {
			Key json.RawMessage `json:"tee-pubkey"`
		} `json:"runtime_data_claims"`
	}
	if err := json.Unmarshal(c.Submods[ear.CPU].Evidence, &e); err != nil {
		return kbs.TEEPubKey{}, fmt.Errorf("token: annotated evidence: %w", err)
	}
	return kbs.ParseTEEPubKey(e.Runtime.Key)
}
