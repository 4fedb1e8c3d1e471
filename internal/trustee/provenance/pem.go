package provenance

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// ParsePEM reads a signer's file: public keys (PKIX, "PUBLIC KEY") and root
// certificates ("CERTIFICATE"), in any order. Anything else is an error, a
// private key above all.
func ParsePEM(text []byte) ([]crypto.PublicKey, []*x509.Certificate, error) {
	if len(text) > MaxDocument {
		return nil, nil, fmt.Errorf("expected at most %d bytes of PEM, got %d", MaxDocument, len(text))
	}
	var keys []crypto.PublicKey
	var roots []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		switch block.Type {
		case "PUBLIC KEY":
			k, err := x509.ParsePKIXPublicKey(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("public key %d: %w", len(keys), err)
			}
			if err := checkKey(k); err != nil {
				return nil, nil, fmt.Errorf("public key %d: %w", len(keys), err)
			}
			keys = append(keys, k)
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("certificate %d: %w", len(roots), err)
			}
			roots = append(roots, c)
		default:
			return nil, nil, fmt.Errorf("expected PUBLIC KEY and CERTIFICATE blocks, got %.80q", block.Type)
		}
	}
	if strings.TrimSpace(string(text)) != "" {
		return nil, nil, errors.New("expected PEM to the end, got something else after it")
	}
	if len(keys)+len(roots) == 0 {
		return nil, nil, errors.New("expected a public key or a certificate in PEM, got none")
	}
	return keys, roots, nil
}
