// Package p384 verifies ECDSA signatures on the curve P-384, which AMD's, Arm's
// and NVIDIA's keys are on, in half the time that crypto/ecdsa takes: the
// standard library's P-384 is portable and in constant time, while everything
// in a verification is public. The curve arithmetic is cloudflare/circl's.
//
// The guest does not link this package; it only verifies where evidence is
// judged.
package p384

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"math/big"

	"github.com/cloudflare/circl/ecc/p384"
)

// Size is the length of one number of a signature in bytes.
const Size = 48

// Verify reports whether (r, s) is a signature by pub over a message with
// that digest (FIPS 186-5, §6.4.2): at most 48 bytes of digest count. False for
// keys on other curves, points off the curve, and numbers out of range.
func Verify(pub *ecdsa.PublicKey, digest []byte, r, s *big.Int) bool {
	if pub == nil || pub.Curve != elliptic.P384() {
		return false
	}
	n := elliptic.P384().Params().N
	if r.Sign() <= 0 || s.Sign() <= 0 || r.Cmp(n) >= 0 || s.Cmp(n) >= 0 {
		return false
	}
	// Bytes refuses points that are not on the curve, and the one at infinity.
	point, err := pub.Bytes()
	if err != nil || len(point) != 1+2*Size {
		return false
	}
	if len(digest) > Size {
		digest = digest[:Size]
	}
	w := new(big.Int).ModInverse(s, n)
	u1 := new(big.Int).SetBytes(digest)
	u1.Mod(u1.Mul(u1, w), n)
	u2 := new(big.Int).Mul(r, w)
	u2.Mod(u2, n)
	qx, qy := new(big.Int).SetBytes(point[1:1+Size]), new(big.Int).SetBytes(point[1+Size:])
	x, y := p384.P384().CombinedMult(qx, qy, u1.Bytes(), u2.Bytes())
	if x.Sign() == 0 && y.Sign() == 0 {
		return false
	}
	return x.Mod(x, n).Cmp(r) == 0
}

// VerifyRaw is Verify for a signature of two big-endian numbers of 48 bytes.
func VerifyRaw(pub *ecdsa.PublicKey, digest, signature []byte) bool {
	if len(signature) != 2*Size {
		return false
	}
	return Verify(pub, digest, new(big.Int).SetBytes(signature[:Size]), new(big.Int).SetBytes(signature[Size:]))
}
