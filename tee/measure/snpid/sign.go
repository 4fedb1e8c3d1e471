package snpid

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
)

// Signed is a block with everything that a launch needs.
type Signed struct {
	Block [BlockSize]byte
	Auth  [AuthSize]byte
	// IDKeyDigest and AuthorKeyDigest are what reports will show; the latter
	// only if HasAuthorKey.
	IDKeyDigest     [48]byte
	AuthorKeyDigest [48]byte
	HasAuthorKey    bool
}

// QEMU is what to append to `-object sev-snp-guest,…`.
func (s Signed) QEMU() string {
	out := "id-block=" + base64.StdEncoding.EncodeToString(s.Block[:]) + ",id-auth=" + base64.StdEncoding.EncodeToString(s.Auth[:])
	if s.HasAuthorKey {
		out += ",author-key-enabled=on"
	}
	return out
}

// Sign signs b with idKey and, if authorKey is not nil, idKey with authorKey.
// Both are P-384 keys. random is crypto/rand.Reader outside of tests.
func Sign(random io.Reader, b Block, idKey, authorKey *ecdsa.PrivateKey) (Signed, error) {
	if idKey == nil {
		return Signed{}, errNoKey
	}
	s := Signed{Block: b.Bytes()}
	binary.LittleEndian.PutUint32(s.Auth[offIDAlgo:], algoP384SHA384)
	key, err := PublicKey(&idKey.PublicKey)
	if err != nil {
		return Signed{}, fmt.Errorf("id key: %w", err)
	}
	copy(s.Auth[offIDKey:], key[:])
	s.IDKeyDigest = sha512.Sum384(key[:])
	if err := sign(random, s.Auth[offBlockSig:], idKey, s.Block[:]); err != nil {
		return Signed{}, fmt.Errorf("id block: %w", err)
	}
	if authorKey == nil {
		return s, nil
	}
	binary.LittleEndian.PutUint32(s.Auth[offAuthorAlgo:], algoP384SHA384)
	author, err := PublicKey(&authorKey.PublicKey)
	if err != nil {
		return Signed{}, fmt.Errorf("author key: %w", err)
	}
	copy(s.Auth[offAuthorKey:], author[:])
	s.AuthorKeyDigest, s.HasAuthorKey = sha512.Sum384(author[:]), true
	if err := sign(random, s.Auth[offIDKeySig:], authorKey, key[:]); err != nil {
		return Signed{}, fmt.Errorf("id key: %w", err)
	}
	return s, nil
}

// SignOnce signs b with a fresh key that is forgotten. Reports then show a
// digest that only this block has; the block's measurement is what counts.
func SignOnce(random io.Reader, b Block) (Signed, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), random)
	if err != nil {
		return Signed{}, fmt.Errorf("snpid: throw-away key: %w", err)
	}
	return Sign(random, b, key, nil)
}

// PublicKey encodes a P-384 key as the security processor hashes it: the curve's
// number, then both coordinates little-endian in 72 bytes, then zeroes.
func PublicKey(k *ecdsa.PublicKey) (out [keySize]byte, err error) {
	if k == nil {
		return out, errNoKey
	}
	if k.Curve != elliptic.P384() {
		return out, fmt.Errorf("snpid: key: expected a P-384 key, got one on %s", k.Params().Name)
	}
	point, err := k.Bytes()
	if err != nil {
		return out, fmt.Errorf("snpid: key: %w", err)
	}
	binary.LittleEndian.PutUint32(out[:], curveP384)
	putReversed(out[4:], point[1:49])
	putReversed(out[4+numberSize:], point[49:])
	return out, nil
}

// KeyDigest is the id_key_digest or author_key_digest of a key: the SHA-384 of
// [PublicKey].
func KeyDigest(k *ecdsa.PublicKey) ([48]byte, error) {
	key, err := PublicKey(k)
	if err != nil {
		return [48]byte{}, err
	}
	return sha512.Sum384(key[:]), nil
}

func sign(random io.Reader, out []byte, k *ecdsa.PrivateKey, message []byte) error {
	sum := sha512.Sum384(message)
	r, s, err := ecdsa.Sign(random, k, sum[:])
	if err != nil {
		return fmt.Errorf("snpid: signing: %w", err)
	}
	putSignature(out, r, s)
	return nil
}

func putSignature(out []byte, r, s *big.Int) {
	var n [48]byte
	putReversed(out, r.FillBytes(n[:]))
	putReversed(out[numberSize:], s.FillBytes(n[:]))
}

// putReversed writes a big-endian number as a little-endian one.
func putReversed(out, n []byte) {
	for i, b := range n {
		out[len(n)-1-i] = b
	}
}

// reversed reads a little-endian number of 72 bytes, whose upper 24 are zero.
func reversed(field []byte) (n [48]byte, ok bool) {
	for _, b := range field[48:numberSize] {
		if b != 0 {
			return n, false
		}
	}
	for i := range n {
		n[i] = field[47-i]
	}
	return n, true
}
