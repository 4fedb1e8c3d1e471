package openpgp

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // signatures name their digest
	_ "crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"
)

// Types of signatures (RFC 9580 section 5.2.1).
const (
	sigBinary           = 0x00
	sigCertFirst        = 0x10 // to 0x13
	sigCertLast         = 0x13
	sigSubkeyBinding    = 0x18
	sigPrimaryBinding   = 0x19
	sigDirectKey        = 0x1f
	sigKeyRevocation    = 0x20
	sigSubkeyRevocation = 0x28
	sigCertRevocation   = 0x30
)

// Subpackets (RFC 9580 section 5.2.3.7).
const (
	subCreated           = 2
	subExpires           = 3
	subKeyExpires        = 9
	subIssuer            = 16
	subNotation          = 20
	subKeyFlags          = 27
	subEmbedded          = 32
	subIssuerFingerprint = 33
)

// known are the other subpackets that may be critical: they say what does not
// matter to us, such as preferences, or restrict what is not done with it here.
var known = map[byte]bool{
	4: true, 5: true, 7: true, 11: true, 12: true, 21: true, 22: true, 23: true, 24: true, 25: true, 26: true, 28: true, 29: true, 30: true, 34: true, 39: true,
}

const flagSign = 0x02

// signature is a signature packet of version 4, not verified.
type signature struct {
	kind byte
	algo byte
	hash crypto.Hash
	// hashed is the part of the packet that is signed.
	hashed []byte
	left   [2]byte
	// value is what the algorithm made, as in the packet.
	value []byte

	created time.Time
	// lifetime and keyLifetime are in seconds; 0 is for ever.
	lifetime, keyLifetime uint32
	flags                 byte
	hasFlags              bool
	// issuer and issuerFingerprint say whose it is; they are hints.
	issuer            uint64
	hasIssuer         bool
	issuerFingerprint []byte
	embedded          *signature
}

// digests that count (RFC 9580 section 9.5).
var digests = map[byte]crypto.Hash{8: crypto.SHA256, 9: crypto.SHA384, 10: crypto.SHA512}

// digestNames are some that do not.
var digestNames = map[byte]string{1: "MD5", 2: "SHA-1", 3: "RIPEMD-160", 11: "SHA-224", 12: "SHA3-256", 14: "SHA3-512"}

func parseSignature(body []byte, nested bool) (*signature, error) {
	if len(body) < 6 {
		return nil, errCut
	}
	if body[0] != 4 {
		return nil, fmt.Errorf("signature of version %d: %w, expected version 4", body[0], errUnsupported)
	}
	s := &signature{kind: body[1], algo: body[2]}
	hash, ok := digests[body[3]]
	if !ok {
		return nil, fmt.Errorf("signature by digest %d (%s): %w, expected SHA-256, SHA-384 or SHA-512", body[3], digestNames[body[3]], errUnsupported)
	}
	s.hash = hash
	n := 6 + int(binary.BigEndian.Uint16(body[4:]))
	if len(body) < n+2 {
		return nil, errCut
	}
	s.hashed = body[:n]
	if err := s.subpackets(body[6:n], true, nested); err != nil {
		return nil, err
	}
	rest := body[n:]
	m := 2 + int(binary.BigEndian.Uint16(rest))
	if len(rest) < m+2 {
		return nil, errCut
	}
	if err := s.subpackets(rest[2:m], false, nested); err != nil {
		return nil, err
	}
	s.left = [2]byte(rest[m:])
	s.value = rest[m+2:]
	if s.created.IsZero() {
		return nil, errors.New("the signature does not say when it was made")
	}
	return s, nil
}

// subpackets reads an area of them. Only those that are signed count; whose
// signature it is and the one that is embedded are checked by themselves and
// may stand outside.
func (s *signature) subpackets(data []byte, signed, nested bool) error {
	for len(data) > 0 {
		n, partial, rest, err := subLength(data)
		if err != nil || partial || n == 0 || uint64(n) > uint64(len(rest)) {
			return errors.New("a subpacket of the signature is longer than its area")
		}
		kind, critical, body := rest[0]&0x7f, rest[0]&0x80 != 0, rest[1:n]
		data = rest[n:]
		if err := s.subpacket(kind, critical, body, signed, nested); err != nil {
			return err
		}
	}
	return nil
}

// subLength is like newLength, without parts (RFC 9580 section 5.2.3.7).
func subLength(data []byte) (n uint32, partial bool, rest []byte, err error) {
	if c := data[0]; c >= 224 && c < 255 {
		if len(data) < 2 {
			return 0, false, nil, errCut
		}
		return uint32(c-192)<<8 + uint32(data[1]) + 192, false, data[2:], nil
	}
	return newLength(data)
}

func (s *signature) subpacket(kind byte, critical bool, body []byte, signed, nested bool) error {
	switch kind {
	case subIssuer:
		if len(body) != 8 {
			return errors.New("the issuer's key ID has not 8 bytes")
		}
		s.issuer, s.hasIssuer = binary.BigEndian.Uint64(body), true
		return nil
	case subIssuerFingerprint:
		if len(body) == 21 && body[0] == 4 {
			s.issuerFingerprint = body[1:]
		}
		return nil
	case subEmbedded:
		if nested {
			return errors.New("a signature in a signature in a signature")
		}
		if e, err := parseSignature(body, true); err == nil {
			s.embedded = e
		}
		return nil
	}
	if !signed {
		return nil
	}
	switch kind {
	case subCreated:
		t, err := seconds(body)
		if err != nil || !s.created.IsZero() {
			return errors.New("the time of the signature is not there once, in 4 bytes")
		}
		s.created = time.Unix(int64(t), 0)
	case subExpires, subKeyExpires:
		t, err := seconds(body)
		if err != nil {
			return err
		}
		if kind == subExpires {
			s.lifetime = shorter(s.lifetime, t)
		} else {
			s.keyLifetime = shorter(s.keyLifetime, t)
		}
	case subKeyFlags:
		if len(body) > 0 {
			s.flags = body[0]
		}
		s.hasFlags = true
	default:
		if critical && !known[kind] {
			return fmt.Errorf("the signature has a critical subpacket of type %d: %w", kind, errUnsupported)
		}
	}
	return nil
}

func seconds(body []byte) (uint32, error) {
	if len(body) != 4 {
		return 0, errors.New("a time has not 4 bytes")
	}
	return binary.BigEndian.Uint32(body), nil
}

// shorter of two lifetimes, of which 0 is for ever.
func shorter(a, b uint32) uint32 {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

// after is the time a lifetime ends; far away for one that does not.
func after(t time.Time, lifetime uint32) time.Time {
	if lifetime == 0 {
		return time.Unix(math.MaxInt32*4, 0)
	}
	return t.Add(time.Duration(lifetime) * time.Second)
}

// by says whether the hints name k. Without any, it could be k's.
func (s *signature) by(k *publicKey) bool {
	if s.issuerFingerprint != nil {
		return bytes.Equal(s.issuerFingerprint, k.fingerprint[:])
	}
	return !s.hasIssuer || s.issuer == k.keyID()
}

// issuerName is whose signature it says it is.
func (s *signature) issuerName() string {
	if s.issuerFingerprint != nil {
		return hex.EncodeToString(s.issuerFingerprint)
	}
	if s.hasIssuer {
		return fmt.Sprintf("%016x", s.issuer)
	}
	return "unknown"
}

// verify says whether s is k's signature of the parts (RFC 9580 section 5.2.4).
func (s *signature) verify(k *publicKey, parts ...[]byte) error {
	h := s.hash.New()
	for _, p := range parts {
		h.Write(p)
	}
	h.Write(s.hashed)
	h.Write(binary.BigEndian.AppendUint32([]byte{4, 0xff}, uint32(len(s.hashed))))
	sum := h.Sum(nil)
	if !bytes.Equal(sum[:2], s.left[:]) {
		return errors.New("the signature is of something else: its first two bytes of the digest differ")
	}
	return k.verify(s, sum)
}
