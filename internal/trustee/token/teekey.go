package token

import (
	"encoding/json"
	"slices"
	"strings"
)

// teeKeyPointers are where tokens of the ecosystem's attestation services
// keep the key that responses are encrypted to: JSON pointers (RFC 6901), in
// the order in which they are tried.
func teeKeyPointers() []string {
	return []string{
		"/tdx/attester_runtime_data/tee-pubkey",
		"/tdx/attester_user_data/tee-pubkey",
		"/customized_claims/runtime_data/tee-pubkey",
		"/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey",
		"/tee-pubkey",
	}
}

// TEEKey finds the TEE's public key, a JWK, in a token's payload. extra are
// JSON pointers that are tried first.
func TEEKey(payload json.RawMessage, extra ...string) (json.RawMessage, bool) {
	for _, p := range slices.Concat(extra, teeKeyPointers()) {
		if v, ok := pointer(payload, p); ok {
			return v, true
		}
	}
	return nil, false
}

// pointer follows a JSON pointer through objects.
func pointer(doc json.RawMessage, p string) (json.RawMessage, bool) {
	if !strings.HasPrefix(p, "/") {
		return nil, false
	}
	for _, name := range strings.Split(p[1:], "/") {
		name = strings.NewReplacer("~1", "/", "~0", "~").Replace(name)
		var members map[string]json.RawMessage
		if json.Unmarshal(doc, &members) != nil {
			return nil, false
		}
		var ok bool
		if doc, ok = members[name]; !ok {
			return nil, false
		}
	}
	return doc, len(doc) > 0 && doc[0] == '{'
}
