package kbs

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/tee"
)

// Attestation answers a challenge (POST /kbs/v0/attest), in one form for all
// versions.
type Attestation struct {
	Version Version
	// InitData is nil when the client sent none.
	InitData *InitData
	// Nonce is the challenge's nonce as the client repeats it; "" in versions
	// before 0.4.0, which do not repeat it.
	Nonce  string
	TEEKey TEEPubKey
	// Evidence is the primary environment's evidence.
	Evidence json.RawMessage
	// Additional is the evidence of devices, a JSON object in a string
	// exactly as it was sent ("" for none), because the primary evidence is
	// bound to this string. It is nil before version 0.3.0.
	Additional *string
}

// InitData is initdata as the client presents it.
type InitData struct {
	// Format is "toml" or "json".
	Format string `json:"format"`
	// Body is the document, verbatim: its digest is over these bytes.
	Body string `json:"body"`
}

// ParseAttestation decodes the body of POST /attest in the form of version,
// which is what the session's [Request] named: the body does not say.
func ParseAttestation(version Version, data []byte) (*Attestation, error) {
	o, err := parseObject("attestation", data, MaxAttestationBytes)
	if err != nil {
		return nil, err
	}
	a := &Attestation{Version: version}
	switch version {
	case V010, V011, V020, V030:
		key, err := o.must("tee-pubkey")
		if err != nil {
			return nil, err
		}
		if a.TEEKey, err = ParseTEEPubKey(key); err != nil {
			return nil, err
		}
	case V040:
		if err := a.parseRuntimeData(o); err != nil {
			return nil, err
		}
		if err := a.parseInitData(o); err != nil {
			return nil, err
		}
	default:
		return nil, &VersionError{Got: string(version)}
	}
	if err := a.parseEvidence(o); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Attestation) parseRuntimeData(o object) error {
	rd, err := o.sub("runtime-data")
	if err != nil {
		return err
	}
	if a.Nonce, err = rd.str("nonce"); err != nil {
		return err
	}
	if n := len(a.Nonce); n == 0 || n > maxNonceBytes {
		return fmt.Errorf("kbs: %s: member \"nonce\": expected 1 to %d bytes, got %d", rd.what, maxNonceBytes, n)
	}
	key, err := rd.must("tee-pubkey")
	if err != nil {
		return err
	}
	a.TEEKey, err = ParseTEEPubKey(key)
	return err
}

func (a *Attestation) parseInitData(o object) error {
	raw, ok, err := o.get("init-data")
	if err != nil || !ok || kind(raw) == "null" {
		return err
	}
	id, err := subObject("attestation: init-data", raw)
	if err != nil {
		return err
	}
	a.InitData = &InitData{}
	if a.InitData.Format, err = id.str("format"); err != nil {
		return err
	}
	if f := a.InitData.Format; f != "toml" && f != "json" {
		return fmt.Errorf("kbs: %s: member \"format\": expected \"toml\" or \"json\", got %q", id.what, clip(f, 32))
	}
	a.InitData.Body, err = id.str("body")
	return err
}

func (a *Attestation) parseEvidence(o object) error {
	raw, err := o.must("tee-evidence")
	if err != nil {
		return err
	}
	switch a.Version {
	case V010: // a string that holds JSON
		s, err := o.asString("tee-evidence", raw)
		if err != nil {
			return err
		}
		if err := checkJSON([]byte(s), MaxAttestationBytes); err != nil {
			return fmt.Errorf("kbs: attestation: tee-evidence: %w", err)
		}
		a.Evidence = json.RawMessage(s)
		return nil
	case V011, V020:
		a.Evidence = raw
		return nil
	}
	ev, err := subObject("attestation: tee-evidence", raw)
	if err != nil {
		return err
	}
	if a.Evidence, err = ev.must("primary_evidence"); err != nil {
		return err
	}
	additional, err := ev.optStr("additional_evidence")
	a.Additional = &additional
	return err
}

// Devices decodes the evidence of additional devices. It is empty when there
// is none.
func (a *Attestation) Devices() (map[tee.Name]json.RawMessage, error) {
	if a.Additional == nil || *a.Additional == "" {
		return nil, nil
	}
	o, err := parseObject("attestation: additional_evidence", []byte(*a.Additional), MaxAttestationBytes)
	if err != nil {
		return nil, err
	}
	out := make(map[tee.Name]json.RawMessage, len(o.members))
	for k, v := range o.members {
		name, err := tee.ParseName(k)
		if err != nil {
			return nil, fmt.Errorf("kbs: %s: unknown TEE %q", o.what, clip(k, 32))
		}
		if _, dup := out[name]; dup {
			return nil, fmt.Errorf("kbs: %s: TEE %q occurs twice", o.what, name)
		}
		out[name] = v
	}
	return out, nil
}

// Digest is the report data the primary evidence must carry: see
// [RuntimeDigest]. alg is the algorithm the server's challenge named ("" for
// SHA-384) and nonce the one it sent. A nonce that the client repeats must be
// that one.
func (a *Attestation) Digest(alg, nonce string) ([]byte, error) {
	if a.Version == V040 && a.Nonce != nonce {
		return nil, errors.New("kbs: attestation: runtime-data: the nonce is not that of the challenge: begin again at /auth")
	}
	return RuntimeDigest(alg, nonce, a.TEEKey, a.Additional)
}

// DeviceDigest is the report data every additional device's evidence must
// carry.
func (a *Attestation) DeviceDigest(alg, nonce string) ([]byte, error) {
	return RuntimeDigest(alg, nonce, a.TEEKey, nil)
}

// MarshalJSON writes the form of version 0.4.0; an attestation of another
// version is an error.
func (a Attestation) MarshalJSON() ([]byte, error) {
	if a.Version != V040 {
		return nil, fmt.Errorf("kbs: attestation: expected version %s, got %q", V040, string(a.Version))
	}
	type runtimeData struct {
		Nonce string    `json:"nonce"`
		Key   TEEPubKey `json:"tee-pubkey"`
	}
	type evidence struct {
		Primary    json.RawMessage `json:"primary_evidence"`
		Additional string          `json:"additional_evidence"`
	}
	var additional string
	if a.Additional != nil {
		additional = *a.Additional
	}
	return marshal(struct {
		InitData *InitData   `json:"init-data"`
		Runtime  runtimeData `json:"runtime-data"`
		Evidence evidence    `json:"tee-evidence"`
	}{a.InitData, runtimeData{a.Nonce, a.TEEKey}, evidence{a.Evidence, additional}})
}

// TokenResponse answers an attestation.
type TokenResponse struct {
	Token string `json:"token"`
}

// ParseTokenResponse decodes the answer to POST /attest. It checks that the
// token has a JWT's outer form, so that it can stand in a header; whether it
// is genuine is for those who rely on it.
func ParseTokenResponse(data []byte) (*TokenResponse, error) {
	o, err := parseObject("token response", data, MaxTokenBytes+1024)
	if err != nil {
		return nil, err
	}
	t := &TokenResponse{}
	if t.Token, err = o.str("token"); err != nil {
		return nil, err
	}
	if err := checkJWT("token response", t.Token); err != nil {
		return nil, err
	}
	return t, nil
}

// checkJWT checks a token's outer form.
func checkJWT(what, token string) error {
	if len(token) > MaxTokenBytes {
		return fmt.Errorf("kbs: %s: token has %d bytes, the limit is %d", what, len(token), MaxTokenBytes)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return fmt.Errorf("kbs: %s: expected a JWT of 3 parts, got %d", what, len(parts))
	}
	for _, p := range parts {
		if _, err := decode64(p); err != nil || p == "" {
			return fmt.Errorf("kbs: %s: token is not a JWT: a part is not unpadded base64url", what)
		}
	}
	return nil
}
