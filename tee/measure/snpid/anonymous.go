package snpid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/cloudflare/circl/ecc/p384"
)

// SignAnonymously signs b with no private key at all: it takes the signature
// (r, s) = (2, 1) and computes the public key under which it verifies (public
// key recovery, SEC 1 version 2.0, §4.1.6). Anybody can repeat it and get the
// same bytes. Of the two keys that fit it takes the one whose encoding is the
// smaller; nothing promises that another tool chooses alike.
func SignAnonymously(b Block) (Signed, error) {
	s := Signed{Block: b.Bytes()}
	key, err := recoverKey(s.Block[:])
	if err != nil {
		return Signed{}, err
	}
	encoded, err := PublicKey(key)
	if err != nil {
		return Signed{}, err
	}
	binary.LittleEndian.PutUint32(s.Auth[offIDAlgo:], algoP384SHA384)
	putSignature(s.Auth[offBlockSig:], big.NewInt(2), big.NewInt(1))
	copy(s.Auth[offIDKey:], encoded[:])
	s.IDKeyDigest = sha512.Sum384(encoded[:])
	return s, nil
}

// recoverKey finds Q = r⁻¹(sR − zG) for r = 2, s = 1 and both points R with the
// x coordinate 2.
func recoverKey(message []byte) (*ecdsa.PublicKey, error) {
	curve := p384.P384()
	params := elliptic.P384().Params()
	// y² = x³ − 3x + b, with x = 2.
	y2 := new(big.Int).Add(big.NewInt(2), params.B)
	y := new(big.Int).ModSqrt(y2, params.P)
	if y == nil {
		return nil, errors.New("snpid: no point of P-384 has the x coordinate 2")
	}
	sum := sha512.Sum384(message)
	half := new(big.Int).ModInverse(big.NewInt(2), params.N)
	z := new(big.Int).Mul(new(big.Int).SetBytes(sum[:]), half)
	z.Neg(z).Mod(z, params.N)

	var best []byte
	for _, ry := range []*big.Int{y, new(big.Int).Sub(params.P, y)} {
		qx, qy := curve.CombinedMult(big.NewInt(2), ry, z.Bytes(), half.Bytes())
		if qx.Sign() == 0 && qy.Sign() == 0 {
			continue
		}
		point := make([]byte, 97)
		point[0] = 4
		qx.FillBytes(point[1:49])
		qy.FillBytes(point[49:])
		if best == nil || bytes.Compare(point, best) < 0 {
			best = point
		}
	}
	if best == nil {
		return nil, errors.New("snpid: no key fits the block")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), best)
	if err != nil {
		return nil, fmt.Errorf("snpid: recovered key: %w", err)
	}
	return key, nil
}
