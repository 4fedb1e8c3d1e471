package luks

import (
	"crypto/aes"
	"crypto/pbkdf2"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/xts"
)

// derive computes n bytes from the passphrase. The parameters were validated.
func (k kdf) derive(passphrase []byte, n int) ([]byte, error) {
	salt, err := base64.StdEncoding.DecodeString(k.Salt)
	if err != nil {
		return nil, refuse("kdf.salt", "%v", err)
	}
	switch k.Type {
	case "argon2id":
		return argon2.IDKey(passphrase, salt, k.Time, k.Memory, uint8(k.CPUs), uint32(n)), nil
	case "argon2i":
		return argon2.Key(passphrase, salt, k.Time, k.Memory, uint8(k.CPUs), uint32(n)), nil
	case "pbkdf2":
		return pbkdf2.Key(hashes[k.Hash], string(passphrase), salt, int(k.Iterations), n)
	}
	return nil, refuse("kdf.type", "%q is not known", k.Type)
}

// matches tells whether the volume key is the one that the digest is of
// (section 3.2.5).
func (d digest) matches(key []byte) (bool, error) {
	want, err := base64.StdEncoding.DecodeString(d.Digest)
	if err != nil {
		return false, refuse("digests.0.digest", "%v", err)
	}
	got, err := d.of(key, len(want))
	return subtle.ConstantTimeCompare(got, want) == 1, err
}

func (d digest) of(key []byte, n int) ([]byte, error) {
	salt, err := base64.StdEncoding.DecodeString(d.Salt)
	if err != nil {
		return nil, refuse("digests.0.salt", "%v", err)
	}
	return pbkdf2.Key(hashes[d.Hash], string(key), salt, int(d.Iterations), n)
}

// areaCrypt encrypts or decrypts a key slot's area: AES-XTS in units of 512
// bytes, numbered from 0. The length of src is a multiple of it.
func areaCrypt(key, dst, src []byte, encrypt bool) error {
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return fmt.Errorf("key slot: %w", err)
	}
	for i := 0; i < len(src); i += areaSector {
		if encrypt {
			c.Encrypt(dst[i:i+areaSector], src[i:i+areaSector], uint64(i/areaSector))
		} else {
			c.Decrypt(dst[i:i+areaSector], src[i:i+areaSector], uint64(i/areaSector))
		}
	}
	return nil
}

// The anti-forensic splitter (section 2.4, and LUKS1 section 2.4) spreads a key
// over many blocks, all of which are needed to get it back.

// afMerge puts the key together from n blocks.
func afMerge(split []byte, size, n int, h func() hash.Hash) []byte {
	d := make([]byte, size)
	for i := range n - 1 {
		subtle.XORBytes(d, d, split[i*size:])
		diffuse(d, h())
	}
	subtle.XORBytes(d, d, split[(n-1)*size:])
	return d
}

// afSplit fills all but the last block of split, which are random, so that they
// merge to the key.
func afSplit(split, key []byte, n int, h func() hash.Hash) {
	size := len(key)
	d := make([]byte, size)
	for i := range n - 1 {
		subtle.XORBytes(d, d, split[i*size:])
		diffuse(d, h())
	}
	subtle.XORBytes(split[(n-1)*size:], d, key)
	clear(d)
}

// diffuse replaces every piece of d, of the hash's size, by the hash of its
// number and itself.
func diffuse(d []byte, h hash.Hash) {
	var number [4]byte
	for i := 0; i*h.Size() < len(d); i++ {
		piece := d[i*h.Size() : min((i+1)*h.Size(), len(d))]
		binary.BigEndian.PutUint32(number[:], uint32(i))
		h.Reset()
		h.Write(number[:])
		h.Write(piece)
		copy(piece, h.Sum(nil))
	}
}
