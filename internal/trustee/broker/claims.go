package broker

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/ear"
)

// verdictClaims are what a record keeps of an appraisal: status, vector and
// the TEE's own claims, without runtime data and initdata.
func verdictClaims(submods map[string]ear.Submod) json.RawMessage {
	type part struct {
		Status   ear.Status                 `json:"status"`
		Vector   ear.Vector                 `json:"vector"`
		Evidence map[string]json.RawMessage `json:"evidence"`
	}
	out := make(map[string]part, len(submods))
	for name, m := range submods {
		p := part{Status: m.Status, Vector: m.Vector}
		if json.Unmarshal(m.Evidence, &p.Evidence) != nil {
			p.Evidence = nil
		}
		for _, key := range []string{"runtime_data_claims", "init_data_claims"} {
			delete(p.Evidence, key)
		}
		out[name] = p
	}
	doc, err := json.Marshal(map[string]any{"submods": out})
	if err != nil {
		return nil
	}
	return doc
}

func simulated(m ear.Submod) bool {
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
