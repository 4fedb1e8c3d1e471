package signature

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
)

const (
	maxKeyPEM  = 64 << 10
	minRSABits = 2048
	maxRSABits = 8192
)

// PublicKey verifies signatures. It is immutable.
type PublicKey struct {
	key crypto.PublicKey
	id  string
}

// ParsePublicKey reads a public key in PEM (PKIX): ECDSA on P-256 or P-384,
// Ed25519, or RSA of at least 2048 bits.
func ParsePublicKey(data []byte) (*PublicKey, error) {
	if len(data) > maxKeyPEM {
		return nil, fmt.Errorf("public key: longer than %d bytes", maxKeyPEM)
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return nil, errors.New("public key: expected PEM, found none")
	}
	if block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("public key: expected a PEM block PUBLIC KEY, got %q", clip(block.Type))
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("public key: expected one PEM block, got more")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return NewPublicKey(key)
}

// NewPublicKey checks that key is of a kind that is accepted.
func NewPublicKey(key crypto.PublicKey) (*PublicKey, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, fmt.Errorf("public key: expected P-256 or P-384, got %s", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return nil, fmt.Errorf("public key: expected RSA of %d to %d bits, got %d", minRSABits, maxRSABits, n)
		}
	default:
		return nil, fmt.Errorf("public key: expected ECDSA, Ed25519 or RSA, got %T", key)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return &PublicKey{key: key, id: hex.EncodeToString(sum[:])}, nil
}

// ID is the sha256 of the key in DER (PKIX), in hexadecimal.
func (k *PublicKey) ID() string { return k.id }

// Verify says whether sig is a signature of message, the way cosign makes
// them: SHA-256 with ECDSA (ASN.1) or RSA PKCS #1 v1.5, or plain Ed25519.
func (k *PublicKey) Verify(message, sig []byte) bool {
	sum := sha256.Sum256(message)
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, sum[:], sig)
	case ed25519.PublicKey:
		return ed25519.Verify(key, message, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig) == nil
	default:
		return false
	}
}

// signMessage is the counterpart of Verify.
func signMessage(rand io.Reader, signer crypto.Signer, message []byte) ([]byte, error) {
	if _, err := NewPublicKey(signer.Public()); err != nil {
		return nil, err
	}
	if _, ok := signer.Public().(ed25519.PublicKey); ok {
		return signer.Sign(rand, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return signer.Sign(rand, sum[:], crypto.SHA256)
}
