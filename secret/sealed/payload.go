package sealed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// Type is what a payload is.
type Type string

// The types.
const (
	// Vault names a secret that a provider keeps.
	Vault Type = "vault"
	// Envelope carries a secret that is encrypted with a key which a provider
	// decrypts.
	Envelope Type = "envelope"
)

// Providers that this project knows.
const (
	// KBS is the key broker. In envelopes it is Coffer's extension.
	KBS = "kbs"
	// AWS is Secrets Manager for vaults, and KMS for envelopes.
	AWS = "aws"
	// Aliyun is the key management service of Alibaba Cloud.
	Aliyun = "aliyun"
)

// Wrap is how an envelope's data is encrypted.
type Wrap string

// The ways: AES-256-GCM with a nonce of 12 bytes and the tag at the end, and
// AES-256 in counter mode with an initial block of 16 bytes, whose integrity is
// the signature's alone.
const (
	A256GCM Wrap = "A256GCM"
	A256CTR Wrap = "A256CTR"
)

// Object is a JSON object as it was written, never empty: "{}" is one without
// members.
type Object = json.RawMessage

// Payload is what a sealed secret says. Strings in base64 are decoded when they
// are used.
type Payload struct {
	Type Type
	// Name is what the provider of a vault calls the secret.
	Name string
	// KeyID is what the provider of an envelope calls its key; EncryptedKey
	// and EncryptedData are padded base64, as is IV.
	KeyID, EncryptedKey, EncryptedData, IV string
	Wrap                                   Wrap
	Provider                               string
	// Settings and Annotations are the provider's own: how to reach it, and
	// what it needs to know about this secret.
	Settings, Annotations Object
}

// wire is a payload as it is written; nil is a member that is absent.
type wire struct {
	Version       *string `json:"version"`
	Type          *string `json:"type"`
	Name          *string `json:"name,omitempty"`
	KeyID         *string `json:"key_id,omitempty"`
	EncryptedKey  *string `json:"encrypted_key,omitempty"`
	EncryptedData *string `json:"encrypted_data,omitempty"`
	WrapType      *string `json:"wrap_type,omitempty"`
	IV            *string `json:"iv,omitempty"`
	Provider      *string `json:"provider"`
	Settings      Object  `json:"provider_settings"`
	Annotations   Object  `json:"annotations"`
}

// ParsePayload decodes a payload. Versions, types and members that it does not
// know are refused, and so is a payload that lacks one of its members, the
// empty provider_settings and annotations included.
func ParsePayload(data []byte) (Payload, error) {
	var w wire
	if err := strictjson.Decode(data, &w, strictjson.Limits{Bytes: MaxBytes, Depth: 8}); err != nil {
		return Payload{}, fmt.Errorf("payload: %w", err)
	}
	if w.Version == nil || *w.Version != Version {
		return Payload{}, fmt.Errorf("payload.version: expected %s, got %s", Version, show(w.Version))
	}
	var p Payload
	var must, not []member
	vault := []member{{"name", w.Name, &p.Name}}
	var wrap string
	envelope := []member{
		{"key_id", w.KeyID, &p.KeyID}, {"encrypted_key", w.EncryptedKey, &p.EncryptedKey}, {"encrypted_data", w.EncryptedData, &p.EncryptedData},
		{"wrap_type", w.WrapType, &wrap}, {"iv", w.IV, &p.IV},
	}
	switch {
	case w.Type != nil && *w.Type == string(Vault):
		must, not = vault, envelope
	case w.Type != nil && *w.Type == string(Envelope):
		must, not = envelope, vault
	default:
		return Payload{}, fmt.Errorf("payload.type: expected %s or %s, got %s", Vault, Envelope, show(w.Type))
	}
	p.Type = Type(*w.Type)
	for _, m := range append(must, member{"provider", w.Provider, &p.Provider}) {
		if m.value == nil || *m.value == "" {
			return Payload{}, fmt.Errorf("payload.%s: is missing", m.name)
		}
		*m.to = *m.value
	}
	for _, m := range not {
		if m.value != nil {
			return Payload{}, fmt.Errorf("payload.%s: does not belong to a secret of type %s", m.name, p.Type)
		}
	}
	p.Wrap = Wrap(wrap)
	if p.Type == Envelope && p.Wrap != A256GCM && p.Wrap != A256CTR {
		return Payload{}, fmt.Errorf("payload.wrap_type: expected %s or %s, got %.32q", A256GCM, A256CTR, wrap)
	}
	for name, o := range map[string]Object{"provider_settings": w.Settings, "annotations": w.Annotations} {
		if !bytes.HasPrefix(o, []byte("{")) {
			return Payload{}, fmt.Errorf("payload.%s: must be an object, {} if there are none", name)
		}
	}
	p.Settings, p.Annotations = w.Settings, w.Annotations
	return p, nil
}

// member is a string of the wire and where it belongs.
type member struct {
	name  string
	value *string
	to    *string
}

func show(s *string) string {
	if s == nil {
		return "nothing"
	}
	return fmt.Sprintf("%.32q", *s)
}

// marshal writes a payload. Empty settings and annotations become {}.
func (p Payload) marshal() ([]byte, error) {
	version, kind, wrap := Version, string(p.Type), string(p.Wrap)
	w := wire{Version: &version, Type: &kind, Provider: &p.Provider, Settings: p.Settings, Annotations: p.Annotations}
	switch p.Type {
	case Vault:
		w.Name = &p.Name
	case Envelope:
		w.KeyID, w.EncryptedKey, w.EncryptedData, w.WrapType, w.IV = &p.KeyID, &p.EncryptedKey, &p.EncryptedData, &wrap, &p.IV
	}
	if len(w.Settings) == 0 {
		w.Settings = Object("{}")
	}
	if len(w.Annotations) == 0 {
		w.Annotations = Object("{}")
	}
	return json.Marshal(w)
}

// JSON writes the payload as it stands in a sealed secret.
func (p Payload) JSON() ([]byte, error) {
	doc, err := p.marshal()
	if err == nil {
		_, err = ParsePayload(doc)
	}
	return doc, err
}

// Into decodes an object's members into a struct, strictly: members that the
// struct does not have are refused. what names the object in errors.
func Into(o Object, what string, v any) error {
	if err := strictjson.Decode(o, v, strictjson.Limits{Bytes: MaxBytes, Depth: 8}); err != nil {
		return fmt.Errorf("payload.%s: %w", what, err)
	}
	return nil
}

// NoSettings refuses provider settings for a provider that has none.
func (p Payload) NoSettings() error { return Into(p.Settings, "provider_settings", &struct{}{}) }

// errNot is about opening another kind of payload than this.
var errNot = errors.New("sealed secret: not an envelope")
