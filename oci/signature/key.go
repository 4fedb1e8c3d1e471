package signature

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
)

const (
	maxKeyPEM  = 64 << 10
	minRSABits = 2048
	maxRSABits = 8192
)

// PublicKey verifies signatures. It is immutable.
type PublicKey struct {
	key crypto.PublicKey
	der []byte
	id  string
}

// ParsePublicKey reads one public key in PEM (PKIX): ECDSA on P-256, P-384 or
// P-521, Ed25519, or RSA of 2048 to 8192 bits.
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
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return nil, fmt.Errorf("public key: expected P-256, P-384 or P-521, got %s", k.Curve.Params().Name)
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
	return &PublicKey{key: key, der: der, id: hex.EncodeToString(sum[:])}, nil
}

// ID is the sha256 of the key in DER (PKIX), in hexadecimal.
func (k *PublicKey) ID() string { return k.id }

// hashes are those that sigstore's clients sign with under such a key
// (sigstore/architecture-docs, algorithm-registry.md): one of the curve's size,
// and SHA-256, which older clients use with every key. Which one it was is not
// said anywhere, and the kind of key alone decides how a signature is checked.
func (k *PublicKey) hashes() []crypto.Hash {
	if key, ok := k.key.(*ecdsa.PublicKey); ok {
		switch key.Curve {
		case elliptic.P384():
			return []crypto.Hash{crypto.SHA384, crypto.SHA256}
		case elliptic.P521():
			return []crypto.Hash{crypto.SHA512, crypto.SHA256}
		}
	}
	return []crypto.Hash{crypto.SHA256}
}

// Verify says whether sig is a signature of message, the way cosign makes
// them: ECDSA (ASN.1) or RSA (PKCS #1 v1.5 or PSS) of a SHA-2 hash, or Ed25519,
// plain or, as Rekor version 2 has it, prehashed.
func (k *PublicKey) Verify(message, sig []byte) bool {
	if key, ok := k.key.(ed25519.PublicKey); ok {
		sum := sha512.Sum512(message)
		return ed25519.Verify(key, message, sig) ||
			ed25519.VerifyWithOptions(key, sum[:], sig, &ed25519.Options{Hash: crypto.SHA512}) == nil
	}
	return slices.ContainsFunc(k.hashes(), func(h crypto.Hash) bool {
		return k.verifySum(h, sumOf(h, message), sig)
	})
}

// verifySum says whether sig is a signature of what has that hash. Ed25519
// signs messages and not hashes: its signatures never pass.
func (k *PublicKey) verifySum(h crypto.Hash, sum, sig []byte) bool {
	if !slices.Contains(k.hashes(), h) || len(sum) != h.Size() {
		return false
	}
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, sum, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, h, sum, sig) == nil ||
			rsa.VerifyPSS(key, h, sum, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil
	default:
		return false
	}
}

func sumOf(h crypto.Hash, message []byte) []byte {
	w := h.New()
	w.Write(message)
	return w.Sum(nil)
}

// signMessage is the counterpart of Verify. It hashes with SHA-256 under every
// key, which all clients read.
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
