package kbs

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/tee"
)

// Version is a protocol version.
type Version string

// The versions [ParseRequest] and [ParseAttestation] understand. 0.3.0 was
// never released but is the same as 0.4.0 but for the body's shape.
const (
	V010 Version = "0.1.0"
	V011 Version = "0.1.1"
	V020 Version = "0.2.0"
	V030 Version = "0.3.0"
	V040 Version = "0.4.0"

	// ProtocolVersion is what [Client] speaks.
	ProtocolVersion = V040
)

// VersionError says that the client speaks another protocol.
type VersionError struct {
	// Got is the version as the client wrote it.
	Got string
}

// Error ends in the words that clients of the ecosystem look for.
func (e *VersionError) Error() string {
	return fmt.Sprintf("KBS Client Protocol Version Mismatch: expect =%s while the request is %s", ProtocolVersion, clip(e.Got, 32))
}

// Request opens a handshake (POST /kbs/v0/auth).
type Request struct {
	Version Version
	TEE     tee.Name
	// HashAlgorithms are the algorithms the client offers, in its order; nil
	// if it named none.
	HashAlgorithms []string
	// PolicySelector chooses among the attestation policies the server
	// offers by name; "" leaves it to the server. It is a hint, never an
	// authorisation.
	PolicySelector string
}

// ParseRequest decodes a request of any known version. It returns
// *VersionError for another version. extra-params may be an object, a string
// (older and third-party clients send "") or absent.
func ParseRequest(data []byte) (*Request, error) {
	o, err := parseObject("request", data, MaxRequestBytes)
	if err != nil {
		return nil, err
	}
	version, err := o.str("version")
	if err != nil {
		return nil, err
	}
	r := &Request{}
	switch v := Version(version); v {
	case V010, V011, V020, V030, V040:
		r.Version = v
	default:
		return nil, &VersionError{Got: version}
	}
	name, err := o.str("tee")
	if err != nil {
		return nil, err
	}
	if r.TEE, err = tee.ParseName(name); err != nil {
		return nil, fmt.Errorf("kbs: request: member \"tee\": unknown TEE %q", clip(name, 32))
	}
	if err := r.parseExtra(o); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Request) parseExtra(request object) error {
	raw, ok, err := request.get("extra-params")
	if err != nil || !ok {
		return err
	}
	switch k := kind(raw); k {
	case "string", "null":
		return nil
	case "object":
	default:
		return fmt.Errorf("kbs: request: member \"extra-params\": expected an object or a string, got %s", k)
	}
	o, err := subObject("request: extra-params", raw)
	if err != nil {
		return err
	}
	if raw, ok, err := o.get("supported-hash-algorithms"); err != nil {
		return err
	} else if ok && kind(raw) != "null" {
		if err := json.Unmarshal(raw, &r.HashAlgorithms); err != nil {
			return fmt.Errorf("kbs: %s: member \"supported-hash-algorithms\": expected an array of strings", o.what)
		}
		if len(r.HashAlgorithms) > maxHashAlgorithms {
			return fmt.Errorf("kbs: %s: member \"supported-hash-algorithms\": has %d entries, the limit is %d", o.what, len(r.HashAlgorithms), maxHashAlgorithms)
		}
	}
	if r.PolicySelector, err = o.optStr("attestation-policy-selector"); err != nil {
		return err
	}
	if len(r.PolicySelector) > maxSelectorBytes {
		return fmt.Errorf("kbs: %s: member \"attestation-policy-selector\": longer than %d bytes", o.what, maxSelectorBytes)
	}
	return r.checkMetadata(o)
}

// checkMetadata reads tee-metadata, which must not name another TEE than the
// request does. Nothing else of it is used.
func (r *Request) checkMetadata(o object) error {
	raw, ok, err := o.get("tee-metadata")
	if err != nil || !ok || kind(raw) == "null" {
		return err
	}
	meta, err := subObject(o.what+": tee-metadata", raw)
	if err != nil {
		return err
	}
	primary, err := meta.sub("primary_tee")
	if err != nil {
		return err
	}
	name, err := primary.str("tee")
	if err != nil {
		return err
	}
	if n, err := tee.ParseName(name); err != nil || n != r.TEE {
		return fmt.Errorf("kbs: %s: member \"tee\": expected %q as in the request, got %q", primary.what, r.TEE, clip(name, 32))
	}
	return nil
}

// MarshalJSON writes the form of version 0.4.0.
func (r Request) MarshalJSON() ([]byte, error) {
	type extra struct {
		Hash     []string `json:"supported-hash-algorithms,omitempty"`
		Selector string   `json:"attestation-policy-selector,omitempty"`
	}
	return marshal(struct {
		Version Version  `json:"version"`
		TEE     tee.Name `json:"tee"`
		Extra   extra    `json:"extra-params"`
	}{r.Version, r.TEE, extra{r.HashAlgorithms, r.PolicySelector}})
}

// Challenge answers a request.
type Challenge struct {
	// Nonce is standard base64 of 32 random bytes, or for IBM Secure
	// Execution a JSON document.
	Nonce string
	// HashAlgorithm is the algorithm the server chose for runtime data, in
	// lower case; "" means SHA-384.
	HashAlgorithm string
}

// ParseChallenge decodes the answer to POST /auth.
func ParseChallenge(data []byte) (*Challenge, error) {
	o, err := parseObject("challenge", data, MaxChallengeBytes)
	if err != nil {
		return nil, err
	}
	c := &Challenge{}
	if c.Nonce, err = o.str("nonce"); err != nil {
		return nil, err
	}
	if n := len(c.Nonce); n == 0 || n > maxNonceBytes {
		return nil, fmt.Errorf("kbs: challenge: member \"nonce\": expected 1 to %d bytes, got %d", maxNonceBytes, n)
	}
	raw, ok, err := o.get("extra-params")
	if err != nil {
		return nil, err
	}
	if !ok || kind(raw) != "object" {
		return c, nil
	}
	extra, err := subObject("challenge: extra-params", raw)
	if err != nil {
		return nil, err
	}
	alg, err := extra.optStr("selected-hash-algorithm")
	if err != nil {
		return nil, err
	}
	c.HashAlgorithm = strings.ToLower(alg)
	if _, err := newHash(c.HashAlgorithm); err != nil {
		return nil, fmt.Errorf("kbs: challenge: member \"selected-hash-algorithm\": %w", err)
	}
	return c, nil
}

// MarshalJSON writes extra-params as "" unless a hash was chosen, as clients
// of the ecosystem require.
func (c Challenge) MarshalJSON() ([]byte, error) {
	var extra any = ""
	if c.HashAlgorithm != "" {
		extra = struct {
			Hash string `json:"selected-hash-algorithm"`
		}{c.HashAlgorithm}
	}
	return marshal(struct {
		Nonce string `json:"nonce"`
		Extra any    `json:"extra-params"`
	}{c.Nonce, extra})
}
