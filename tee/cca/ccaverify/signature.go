package ccaverify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"errors"

	"github.com/veraison/go-cose"

	"github.com/coffer-project/coffer/tee/cca"
	"github.com/coffer-project/coffer/tee/internal/p384"
)

// algorithmOf is the one algorithm that a key signs with.
func algorithmOf(key *ecdsa.PublicKey) (cca.Algorithm, error) {
	switch key.Curve {
	case elliptic.P256():
		return cca.ES256, nil
	case elliptic.P384():
		return cca.ES384, nil
	case elliptic.P521():
		return cca.ES512, nil
	}
	return 0, errors.New("pkey: expected a key on P-256, P-384 or P-521")
}

// verifySign1 has go-cose check the message, and makes sure that it reads the
// same payload out of it.
func verifySign1(s *cca.Signed, key *ecdsa.PublicKey) error {
	var m cose.Sign1Message
	if err := m.UnmarshalCBOR(s.Raw); err != nil {
		return err
	}
	if !bytes.Equal(m.Payload, s.Payload) {
		return errors.New("the message can be read in two ways")
	}
	if s.Algorithm == cca.ES384 {
		return m.Verify(nil, es384{key})
	}
	check, err := cose.NewVerifier(cose.Algorithm(s.Algorithm), key)
	if err != nil {
		return err
	}
	return m.Verify(nil, check)
}

// es384 is go-cose's verifier for P-384, which most tokens are signed with, at
// twice the speed.
type es384 struct{ key *ecdsa.PublicKey }

// Algorithm implements cose.Verifier.
func (es384) Algorithm() cose.Algorithm { return cose.AlgorithmES384 }

// Verify implements cose.Verifier.
func (v es384) Verify(content, signature []byte) error {
	digest := sha512.Sum384(content)
	if len(signature) != 2*p384.Size || !p384.VerifyRaw(v.key, digest[:], signature) {
		return cose.ErrVerification
	}
	return nil
}
