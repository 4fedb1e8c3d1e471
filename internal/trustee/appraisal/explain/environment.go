package explain

import (
	"encoding/json"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/tee"
)

// environment reads from annotated evidence which TEE it is of: the one member
// whose name is a TEE's.
func environment(m ear.Submod) (name string, simulated bool) {
	var evidence map[string]json.RawMessage
	if json.Unmarshal(m.Evidence, &evidence) != nil {
		return "", false
	}
	_ = json.Unmarshal(evidence["simulated"], &simulated)
	for member := range evidence {
		if n, err := tee.ParseName(member); err == nil && string(n) == member {
			return member, simulated
		}
	}
	return "", simulated
}
