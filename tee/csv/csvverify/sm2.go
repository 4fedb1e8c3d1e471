package csvverify

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/emmansun/gmsm/sm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/coffer-project/coffer/tee/csv"
)

// publicKey decodes a key; it fails where the point is not on SM2's curve.
func publicKey(k *csv.PublicKey) (*ecdsa.PublicKey, error) {
	point := append([]byte{4}, k.X[:]...)
	pub, err := sm2.NewPublicKey(append(point, k.Y[:]...))
	if err != nil {
		return nil, fmt.Errorf("public key of %s: %w", k.Usage, err)
	}
	return pub, nil
}

// verifySM2 checks a signature over data by k (GB/T 32918.2), whose user
// identifier is hashed in.
func verifySM2(k *csv.PublicKey, data []byte, s csv.Signature) error {
	pub, err := publicKey(k)
	if err != nil {
		return err
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(s.R[:]))
		b.AddASN1BigInt(new(big.Int).SetBytes(s.S[:]))
	})
	der, err := b.Bytes()
	if err != nil {
		return err
	}
	if !sm2.VerifyASN1WithSM2(pub, k.UserID, data, der) {
		return errors.New("the signature does not match")
	}
	return nil
}
