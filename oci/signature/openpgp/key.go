package openpgp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // the fingerprint of a version 4 key is a SHA-1; no signature is
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Public-key algorithms (RFC 9580 section 9.1) that sign.
const (
	algoRSA         = 1
	algoRSASignOnly = 3
	algoECDSA       = 19
	algoEdDSA       = 22
	algoEd25519     = 27
)

const (
	minRSABits = 2048
	maxRSABits = 8192
)

// Curves by their object identifier in DER (RFC 9580 section 9.2).
var (
	oidP256    = "\x2a\x86\x48\xce\x3d\x03\x01\x07"
	oidP384    = "\x2b\x81\x04\x00\x22"
	oidP521    = "\x2b\x81\x04\x00\x23"
	oidEd25519 = "\x2b\x06\x01\x04\x01\xda\x47\x0f\x01"
)

// publicKey is a key packet.
type publicKey struct {
	created     time.Time
	algo        byte
	key         crypto.PublicKey
	fingerprint [sha1.Size]byte
	// hashed is how the key goes into signatures: the packet with a header.
	hashed []byte
}

// errUnsupported is wrapped by errors about keys that cannot sign here.
var errUnsupported = errors.New("not supported")

func parsePublicKey(body []byte) (*publicKey, error) {
	if len(body) < 6 {
		return nil, errCut
	}
	if body[0] != 4 {
		return nil, fmt.Errorf("key of version %d: %w, expected version 4", body[0], errUnsupported)
	}
	if len(body) > 0xffff {
		return nil, errors.New("a key packet has more than 65535 bytes")
	}
	k := &publicKey{created: time.Unix(int64(binary.BigEndian.Uint32(body[1:])), 0), algo: body[5]}
	k.hashed = append([]byte{0x99, byte(len(body) >> 8), byte(len(body))}, body...)
	k.fingerprint = sha1.Sum(k.hashed) //nolint:gosec // see above
	var rest []byte
	var err error
	switch k.algo {
	case algoRSA, algoRSASignOnly:
		k.key, rest, err = parseRSA(body[6:])
	case algoECDSA, algoEdDSA:
		k.key, rest, err = parseCurve(k.algo, body[6:])
	case algoEd25519:
		if len(body) != 6+ed25519.PublicKeySize {
			return nil, errors.New("an Ed25519 key has not 32 bytes")
		}
		k.key = ed25519.PublicKey(body[6:])
	default:
		return nil, fmt.Errorf("key %s: algorithm %d: %w, expected RSA, ECDSA or Ed25519", k.id(), k.algo, errUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", k.id(), err)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("key %s: the packet has more than the key", k.id())
	}
	return k, nil
}

func parseRSA(data []byte) (crypto.PublicKey, []byte, error) {
	n, data, err := readMPI(data, true)
	if err != nil {
		return nil, nil, err
	}
	e, data, err := readMPI(data, true)
	if err != nil {
		return nil, nil, err
	}
	modulus := new(big.Int).SetBytes(n)
	if b := modulus.BitLen(); b < minRSABits || b > maxRSABits {
		return nil, nil, fmt.Errorf("RSA of %d bits: %w, expected %d to %d", b, errUnsupported, minRSABits, maxRSABits)
	}
	exponent := new(big.Int).SetBytes(e)
	if exponent.BitLen() > 31 || exponent.Int64() < 3 || exponent.Bit(0) == 0 {
		return nil, nil, errors.New("RSA: the exponent is not an odd number from 3 to 2^31-1")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, data, nil
}

func parseCurve(algo byte, data []byte) (crypto.PublicKey, []byte, error) {
	if len(data) == 0 || len(data) < 1+int(data[0]) {
		return nil, nil, errCut
	}
	oid, data := string(data[1:1+data[0]]), data[1+data[0]:]
	point, data, err := readMPI(data, true)
	if err != nil {
		return nil, nil, err
	}
	if algo == algoEdDSA {
		if oid != oidEd25519 {
			return nil, nil, fmt.Errorf("EdDSA on curve %x: %w, expected Ed25519", oid, errUnsupported)
		}
		if len(point) != 1+ed25519.PublicKeySize || point[0] != 0x40 {
			return nil, nil, errors.New("an Ed25519 key is not 0x40 and 32 bytes")
		}
		return ed25519.PublicKey(point[1:]), data, nil
	}
	curve, ok := map[string]elliptic.Curve{oidP256: elliptic.P256(), oidP384: elliptic.P384(), oidP521: elliptic.P521()}[oid]
	if !ok {
		return nil, nil, fmt.Errorf("ECDSA on curve %x: %w, expected P-256, P-384 or P-521", oid, errUnsupported)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	return key, data, err
}

// id is the fingerprint in hexadecimal.
func (k *publicKey) id() string { return hex.EncodeToString(k.fingerprint[:]) }

// keyID is the older, shorter name of the key.
func (k *publicKey) keyID() uint64 { return binary.BigEndian.Uint64(k.fingerprint[12:]) }

// verify says whether s is a signature of the hash under the key.
func (k *publicKey) verify(s *signature, sum []byte) error {
	bad := errors.New("the signature does not verify")
	if s.algo != k.algo && (s.algo != algoRSA || k.algo != algoRSASignOnly) {
		return fmt.Errorf("the signature is of algorithm %d, the key of %d", s.algo, k.algo)
	}
	switch key := k.key.(type) {
	case *rsa.PublicKey:
		n, rest, err := readMPI(s.value, true)
		if err != nil || len(rest) > 0 || len(n) > key.Size() {
			return bad
		}
		sig := make([]byte, key.Size())
		copy(sig[len(sig)-len(n):], n)
		if rsa.VerifyPKCS1v15(key, s.hash, sum, sig) != nil {
			return bad
		}
		return nil
	case *ecdsa.PublicKey:
		// RFC 9580 section 5.2.3.2: no shorter than the curve's order.
		if len(sum)*8 < min(key.Curve.Params().BitSize, 512) {
			return fmt.Errorf("the digest is shorter than what %s needs", key.Curve.Params().Name)
		}
		r, s, err := twoNumbers(s.value, true)
		if err != nil || !ecdsa.Verify(key, sum, new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)) {
			return bad
		}
		return nil
	case ed25519.PublicKey:
		sig := s.value
		if k.algo == algoEdDSA {
			r, s, err := twoNumbers(s.value, false)
			if err != nil || len(r) > 32 || len(s) > 32 {
				return bad
			}
			sig = make([]byte, ed25519.SignatureSize)
			copy(sig[32-len(r):], r)
			copy(sig[64-len(s):], s)
		}
		if len(sig) != ed25519.SignatureSize || !ed25519.Verify(key, sum, sig) {
			return bad
		}
		return nil
	default:
		return bad
	}
}

func twoNumbers(data []byte, exact bool) (r, s []byte, err error) {
	if r, data, err = readMPI(data, exact); err != nil {
		return nil, nil, err
	}
	if s, data, err = readMPI(data, exact); err != nil {
		return nil, nil, err
	}
	if len(data) > 0 {
		return nil, nil, errors.New("there is more than two numbers")
	}
	return r, s, nil
}
