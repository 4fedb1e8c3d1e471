package cca

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/numbers"
)

// Evidence is what a CCA attester sends.
type Evidence struct {
	// Token is the CBOR token, at most [MaxToken] bytes.
	Token []byte
}

// wireEvidence is the JSON form: the token is an array of numbers.
type wireEvidence struct {
	Token numbers.Bytes `json:"token"`
}

// ParseEvidence decodes evidence JSON, {"token":[210,132,…]}. The token itself
// is not looked at: see [ParseToken].
func ParseEvidence(data json.RawMessage) (*Evidence, error) {
	var w wireEvidence
	if err := strictjson.Decode(data, &w, strictjson.Limits{Bytes: MaxEvidence, Depth: 2}); err != nil {
		return nil, fmt.Errorf("cca: evidence: %w", err)
	}
	if len(w.Token) == 0 || len(w.Token) > MaxToken {
		return nil, fmt.Errorf("cca: evidence: token: expected 1 to %d bytes, got %d", MaxToken, len(w.Token))
	}
	return &Evidence{Token: w.Token}, nil
}

// JSON encodes the evidence.
func (e *Evidence) JSON() (json.RawMessage, error) {
	if len(e.Token) == 0 || len(e.Token) > MaxToken {
		return nil, fmt.Errorf("cca: token: expected 1 to %d bytes, got %d", MaxToken, len(e.Token))
	}
	return append(numbers.Append([]byte(`{"token":`), e.Token), '}'), nil
}

// FromRaw makes evidence JSON of a token. It refuses what is not a token.
func FromRaw(raw []byte) (json.RawMessage, error) {
	if _, err := ParseToken(raw); err != nil {
		return nil, err
	}
	return (&Evidence{Token: raw}).JSON()
}

// Inspect decodes a token, or evidence JSON, without verifying it. It fails
// only where data is no collection of CCA tokens; what is wrong inside is in the
// result's Odd.
func Inspect(data []byte) (*tee.Inspection, error) {
	out := &tee.Inspection{TEE: tee.CCA, Format: "CCA token", Fields: map[string]any{}}
	raw := data
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		e, err := ParseEvidence(data)
		if err != nil {
			return nil, err
		}
		raw, out.Format = e.Token, "CCA token in evidence JSON"
	}
	platform, realm, err := parseCollection(raw)
	if err != nil {
		return nil, err
	}
	inspect(out, "platform", platform, func(payload []byte) (map[string]any, error) {
		p, err := parsePlatform(payload)
		if err != nil {
			return nil, err
		}
		if state := LifecycleOf(p.Lifecycle); state != LifecycleSecured {
			out.Odd = append(out.Odd, fmt.Sprintf("cca-platform-lifecycle: %#04x is the state %s, not secured", p.Lifecycle, state))
		}
		return p.claims(), nil
	})
	inspect(out, "realm", realm, func(payload []byte) (map[string]any, error) {
		r, err := parseRealm(payload)
		if err != nil {
			return nil, err
		}
		return r.claims(), nil
	})
	return out, nil
}

func inspect(out *tee.Inspection, name string, token []byte, claims func([]byte) (map[string]any, error)) {
	signed, err := parseSign1(name+" token", token)
	if err != nil {
		out.Odd = append(out.Odd, err.Error())
		return
	}
	out.Fields[name+"_algorithm"] = signed.Algorithm.String()
	fields, err := claims(signed.Payload)
	if err != nil {
		out.Odd = append(out.Odd, err.Error())
		return
	}
	out.Fields[name] = fields
}
