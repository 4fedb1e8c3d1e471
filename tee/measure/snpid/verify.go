package snpid

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
)

// Verified is what a block says, and who signed it.
type Verified struct {
	Block Block
	// IDKeyDigest and AuthorKeyDigest are what reports will show; the latter
	// is zero if there is no author key.
	IDKeyDigest     [48]byte
	AuthorKeyDigest [48]byte
	HasAuthorKey    bool
}

// Verify checks block and auth as the security processor does before a launch:
// forms, the ID key's signature over the block, and the author key's over the
// ID key if there is one. All problems are reported. Who the keys belong to is
// for the caller to say, by their digests.
func Verify(block, auth []byte) (Verified, error) {
	b, err := ParseBlock(block)
	if err != nil {
		return Verified{}, err
	}
	if len(auth) != AuthSize {
		return Verified{}, fmt.Errorf("snpid: id auth: expected %d bytes, got %d", AuthSize, len(auth))
	}
	v := Verified{Block: b, IDKeyDigest: sha512.Sum384(auth[offIDKey : offIDKey+keySize])}
	errs := []error{
		zeroes(auth),
		algorithm(auth, "id", offIDAlgo),
		verify(auth, "id block", offBlockSig, offIDKey, block),
	}
	if binary.LittleEndian.Uint32(auth[offAuthorKey:]) != 0 || binary.LittleEndian.Uint32(auth[offAuthorAlgo:]) != 0 {
		v.HasAuthorKey, v.AuthorKeyDigest = true, sha512.Sum384(auth[offAuthorKey:offAuthorKey+keySize])
		errs = append(errs,
			algorithm(auth, "author", offAuthorAlgo),
			verify(auth, "id key", offIDKeySig, offAuthorKey, auth[offIDKey:offIDKey+keySize]))
	} else if !allZero(auth[offIDKeySig:offIDKeySig+sigSize]) || !allZero(auth[offAuthorKey:offAuthorKey+keySize]) {
		errs = append(errs, errors.New("snpid: id auth: expected neither author key nor signature without an author algorithm"))
	}
	if err := errors.Join(errs...); err != nil {
		return Verified{}, err
	}
	return v, nil
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

func algorithm(auth []byte, name string, off int) error {
	if a := binary.LittleEndian.Uint32(auth[off:]); a != algoP384SHA384 {
		return fmt.Errorf("snpid: id auth: %s key algorithm: expected %d (ECDSA P-384 with SHA-384), got %d", name, algoP384SHA384, a)
	}
	return nil
}

// verify checks the signature at sigOff over message with the key at keyOff.
func verify(auth []byte, name string, sigOff, keyOff int, message []byte) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("snpid: id auth: signature of the %s: %w", name, fmt.Errorf(format, args...))
	}
	if c := binary.LittleEndian.Uint32(auth[keyOff:]); c != curveP384 {
		return fail("key: expected curve %d (P-384), got %d", curveP384, c)
	}
	x, xOK := reversed(auth[keyOff+4:])
	y, yOK := reversed(auth[keyOff+4+numberSize:])
	r, rOK := reversed(auth[sigOff:])
	s, sOK := reversed(auth[sigOff+numberSize:])
	if !xOK || !yOK || !rOK || !sOK {
		return fail("a number has more than 384 bits")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), append(append([]byte{4}, x[:]...), y[:]...))
	if err != nil {
		return fail("key: %w", err)
	}
	sum := sha512.Sum384(message)
	if !ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(r[:]), new(big.Int).SetBytes(s[:])) {
		return fail("is not the key's")
	}
	return nil
}
