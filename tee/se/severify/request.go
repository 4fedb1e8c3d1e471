package severify

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee/se"
)

// The layout of an attestation request control block
// (s390-tools@c6649588, rust/pv/src/req, rust/pv/src/uvattest/arcb.rs).
const (
	headerSize  = 48
	authSize    = 16
	keySlotSize = 80
	tagSize     = 16

	measurementKeySize = 64
	protectionKeySize  = 32
	ivSize             = 12

	algorithmHMACSHA512 = 1
	// Flags are counted from the left: 1 asks for a nonce, 2 and 3 for the
	// hashes of the host keys of the image and of the request.
	flags          = 1<<62 | 1<<61 | 1<<60
	additionalSize = 2 * se.HostKeyHashSize

	// maxHostKeys is what the header's count has room for.
	maxHostKeys = 255
)

// request is everything that a control block is made of.
type request struct {
	iv             [ivSize]byte
	customer       *ecdh.PrivateKey
	protectionKey  [protectionKeySize]byte
	measurementKey [measurementKeySize]byte
	nonce          [se.NonceSize]byte
	hostKeys       []*hostKey
}

// encode writes the control block: header, what is asked for, the customer's
// public key and one slot for each host key in the open, the measurement key and
// the nonce encrypted, and a tag over all.
func (r *request) encode() ([]byte, error) {
	if n := len(r.hostKeys); n == 0 || n > maxHostKeys {
		return nil, fmt.Errorf("expected 1 to %d host keys, got %d", maxHostKeys, n)
	}
	be := binary.BigEndian
	secret := append(r.measurementKey[:], r.nonce[:]...)
	open := headerSize + authSize + 2*coordinateSize + keySlotSize*len(r.hostKeys)
	out := make([]byte, 0, open+len(secret)+tagSize)
	out = append(out, make([]byte, 8)...) // the magic of attestation requests
	out = be.AppendUint32(out, se.Version)
	out = be.AppendUint32(out, uint32(cap(out)))
	out = append(out, r.iv[:]...)
	out = append(out, make([]byte, 4+7)...)
	out = append(out, byte(len(r.hostKeys)))
	out = append(out, make([]byte, 4)...)
	out = be.AppendUint32(out, uint32(len(secret)))
	out = be.AppendUint64(out, flags)
	out = be.AppendUint32(out, algorithmHMACSHA512)
	out = append(out, make([]byte, 4)...)
	out = append(out, coordinates(r.customer.PublicKey())...)
	for _, k := range r.hostKeys {
		slot, err := r.slot(k)
		if err != nil {
			return nil, err
		}
		out = append(out, slot...)
	}
	aead, err := gcm(r.protectionKey[:])
	if err != nil {
		return nil, err
	}
	return aead.Seal(out, r.iv[:], secret, out), nil
}

// slot wraps the protection key for one machine: under the SHA-256 of the shared
// secret and a counter, with a nonce of zeros, as the key is used once.
func (r *request) slot(k *hostKey) ([]byte, error) {
	shared, err := r.customer.ECDH(k.public)
	if err != nil {
		return nil, err
	}
	wrapping := sha256.Sum256(append(shared, 0, 0, 0, 1))
	aead, err := gcm(wrapping[:])
	if err != nil {
		return nil, err
	}
	return aead.Seal(append([]byte(nil), k.hash[:]...), make([]byte, ivSize), r.protectionKey[:], nil), nil
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// seal encrypts a secret for the verifier itself. purpose keeps one kind of
// secret from being taken for another.
func seal(aead cipher.AEAD, nonce [ivSize]byte, purpose string, secret []byte) []byte {
	return aead.Seal(append([]byte(nil), nonce[:]...), nonce[:], secret, []byte(purpose))
}

func unseal(aead cipher.AEAD, purpose string, sealed []byte, size int) ([]byte, error) {
	if len(sealed) != ivSize+size+tagSize {
		return nil, fmt.Errorf("expected %d bytes, got %d", ivSize+size+tagSize, len(sealed))
	}
	secret, err := aead.Open(nil, sealed[:ivSize], sealed[ivSize:], []byte(purpose))
	if err != nil {
		return nil, errors.New("it is not sealed with this verifier's secret")
	}
	return secret, nil
}
