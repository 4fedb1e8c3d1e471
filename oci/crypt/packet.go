package crypt

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/secret"
)

// How a key packet wraps (guest-components' annotation packet, "wrap_type").
const (
	// WrapGCM is AES-256-GCM: 12-byte IV, 16-byte tag behind the ciphertext,
	// no additional data.
	WrapGCM = "A256GCM"
	// WrapCTR is AES-256-CTR with a 16-byte initial counter block. It
	// authenticates nothing itself; a wrong key shows when the layer's MAC is
	// checked.
	WrapCTR = "A256CTR"
)

const (
	maxPackets    = 16
	maxPacketJSON = 16 << 10
	maxKID        = 1024
	packetVersion = "0.1.0"
	providerKBS   = "kbs"
)

// Packet is the key packet of an encrypted layer, versions 1 and 2 of the
// annotation packet. Version 1 has the first four members only.
type Packet struct {
	// KID names the key-encryption key: kbs://[HOST]/REPOSITORY/TYPE/TAG.
	KID string `json:"kid"`
	// WrappedData is the layer's private options, encrypted.
	WrappedData []byte `json:"wrapped_data"`
	IV          []byte `json:"iv,omitempty"`
	WrapType    string `json:"wrap_type,omitempty"`

	Version          string         `json:"version,omitempty"`
	Provider         string         `json:"provider,omitempty"`
	ProviderSettings map[string]any `json:"provider_settings,omitempty"`
	Annotations      map[string]any `json:"annotations,omitempty"`
}

// ParsePacket decodes and checks one packet. A packet for a key management
// service other than the KBS is refused by name.
func ParsePacket(data []byte) (*Packet, error) {
	p := &Packet{}
	if err := strictjson.Decode(data, p, strictjson.Limits{Bytes: maxPacketJSON, Depth: 8}); err != nil {
		return nil, fmt.Errorf("key packet: %w", err)
	}
	if p.Provider != "" && p.Provider != providerKBS {
		return nil, fmt.Errorf("key packet: provider: %q is not supported; expected %q", clip(p.Provider), providerKBS)
	}
	if p.Version != "" && p.Version != packetVersion {
		return nil, fmt.Errorf("key packet: version: expected %q, got %q", packetVersion, clip(p.Version))
	}
	if len(p.KID) > maxKID || !strings.HasPrefix(p.KID, "kbs://") {
		return nil, fmt.Errorf("key packet: kid: expected kbs://[HOST]/REPOSITORY/TYPE/TAG of at most %d bytes, got %q", maxKID, clip(p.KID))
	}
	if len(p.WrappedData) == 0 {
		return nil, errors.New("key packet: wrapped_data: missing")
	}
	var want int
	switch p.WrapType {
	case WrapGCM:
		want = 12
	case WrapCTR:
		want = aes.BlockSize
	default:
		return nil, fmt.Errorf("key packet: wrap_type: expected %s or %s, got %q", WrapGCM, WrapCTR, clip(p.WrapType))
	}
	if len(p.IV) != want {
		return nil, fmt.Errorf("key packet: iv: expected %d bytes for %s, got %d", want, p.WrapType, len(p.IV))
	}
	return p, nil
}

// Unwrap opens the packet under the key-encryption key.
func (p *Packet) Unwrap(kek secret.Bytes) (secret.Bytes, error) {
	if kek.Len() != KeySize {
		return secret.Bytes{}, fmt.Errorf("key %s: expected %d bytes, got %d", clip(p.KID), KeySize, kek.Len())
	}
	block, err := aes.NewCipher(kek.Expose())
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("key %s: %w", clip(p.KID), err)
	}
	switch p.WrapType {
	case WrapGCM:
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return secret.Bytes{}, fmt.Errorf("key %s: %w", clip(p.KID), err)
		}
		plain, err := aead.Open(nil, p.IV, p.WrappedData, nil)
		if err != nil {
			return secret.Bytes{}, fmt.Errorf("key %s does not open the key packet: it is another key than the layer was encrypted for, or the packet was changed", clip(p.KID))
		}
		return secret.New(plain), nil
	case WrapCTR:
		plain := make([]byte, len(p.WrappedData))
		cipher.NewCTR(block, p.IV).XORKeyStream(plain, p.WrappedData)
		return secret.New(plain), nil
	default:
		return secret.Bytes{}, fmt.Errorf("key packet: wrap_type: %q", clip(p.WrapType))
	}
}

// unwrapAny tries the packets of the annotation in order.
func unwrapAny(ctx context.Context, annotation string, keys KeySource) (secret.Bytes, error) {
	parts := strings.Split(annotation, ",")
	if len(parts) > maxPackets {
		return secret.Bytes{}, fmt.Errorf("annotation %s: %d key packets, at most %d are allowed", AnnotationKeys, len(parts), maxPackets)
	}
	var failures []error
	for i, part := range parts {
		raw, err := base64.StdEncoding.Strict().DecodeString(part)
		if err != nil {
			failures = append(failures, fmt.Errorf("annotation %s: entry %d: %w", AnnotationKeys, i, err))
			continue
		}
		p, err := ParsePacket(raw)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		kek, err := keys.Key(ctx, p.KID)
		if err != nil {
			failures = append(failures, fmt.Errorf("key %s: %w", clip(p.KID), err))
			continue
		}
		plain, err := p.Unwrap(kek)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		return plain, nil
	}
	return secret.Bytes{}, errors.Join(failures...)
}

// clip shortens text of the other side for an error message.
func clip(s string) string {
	const most = 128
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
