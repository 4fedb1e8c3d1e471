// Package tpm holds evidence of a TPM 2.0: a quote over its platform
// configuration registers (PCRs), and the JSON form in which confidential
// containers send it to a key broker.
//
// The binary structures are those of the TPM 2.0 Library specification, part 2
// (revision 1.59); section and table numbers in this package refer to it. They
// are read by hand and strictly: every byte has one meaning, nothing is left
// over, and nothing is allocated before its length was checked.
//
// The package verifies nothing; see tee/tpm/tpmverify. tee/tpm/tpmattest gets
// evidence from a TPM. Nothing outside this module is imported: the guest links
// the package.
package tpm

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes and positions.
const (
	// PCRCount is the number of registers of a PC client TPM (TCG PC Client
	// Platform TPM Profile 1.05, §4.6.2).
	PCRCount = 24
	// InitDataPCR is the register that the guest components extend with the
	// digest of initdata.
	InitDataPCR = 8
	// NonceSize is how much of the report data a quote carries, in bytes.
	NonceSize = 32
	// OldNonceSize is what attesters of 2025 and before used.
	OldNonceSize = 64
)

// Alg is an algorithm identifier (TPM_ALG_ID, §6.3, table 9).
type Alg uint16

// The algorithms that are understood.
const (
	AlgSHA1   Alg = 0x0004
	AlgSHA256 Alg = 0x000B
	AlgSHA384 Alg = 0x000C
	AlgSHA512 Alg = 0x000D
	AlgRSASSA Alg = 0x0014
	AlgRSAPSS Alg = 0x0016
	AlgECDSA  Alg = 0x0018
)

// String is the name of the specification without its prefix.
func (a Alg) String() string {
	switch a {
	case AlgSHA1:
		return "SHA1"
	case AlgSHA256:
		return "SHA256"
	case AlgSHA384:
		return "SHA384"
	case AlgSHA512:
		return "SHA512"
	case AlgRSASSA:
		return "RSASSA"
	case AlgRSAPSS:
		return "RSAPSS"
	case AlgECDSA:
		return "ECDSA"
	}
	return fmt.Sprintf("%#06x", uint16(a))
}

// PCRs are the values of all registers of the SHA-256 bank.
type PCRs [PCRCount][sha256.Size]byte

// Extended is what a register that was zero holds after it has been extended
// with digest: SHA-256(32 zeros ‖ digest).
func Extended(digest [sha256.Size]byte) [sha256.Size]byte {
	var in [2 * sha256.Size]byte
	copy(in[sha256.Size:], digest[:])
	return sha256.Sum256(in[:])
}

// errShort is what reader methods record; the caller names the field.
var errShort = errors.New("ends too early")

// reader reads big-endian fields from the front. The first problem stays; what
// is read after it is zero.
type reader struct {
	rest []byte
	at   int
	err  error
}

func (r *reader) fail(field string, err error) {
	if r.err == nil {
		r.err = fmt.Errorf("%s (byte %d): %w", field, r.at, err)
	}
}

func (r *reader) take(field string, n int) []byte {
	if r.err == nil && n > len(r.rest) {
		r.fail(field, fmt.Errorf("%w: expected %d bytes, got %d", errShort, n, len(r.rest)))
	}
	if r.err != nil {
		return make([]byte, min(n, 8))
	}
	out := r.rest[:n:n]
	r.rest, r.at = r.rest[n:], r.at+n
	return out
}

func (r *reader) u8(field string) uint8   { return r.take(field, 1)[0] }
func (r *reader) u16(field string) uint16 { return binary.BigEndian.Uint16(r.take(field, 2)) }
func (r *reader) u32(field string) uint32 { return binary.BigEndian.Uint32(r.take(field, 4)) }
func (r *reader) u64(field string) uint64 { return binary.BigEndian.Uint64(r.take(field, 8)) }

// sized reads a TPM2B structure of at most limit bytes. It does not copy.
func (r *reader) sized(field string, limit int) []byte {
	n := int(r.u16(field + ".size"))
	if n > limit {
		r.fail(field, fmt.Errorf("expected at most %d bytes, got %d", limit, n))
	}
	if r.err != nil {
		return nil
	}
	return r.take(field, n)
}

// end refuses what is left over.
func (r *reader) end(structure string) error {
	if r.err == nil && len(r.rest) > 0 {
		r.err = fmt.Errorf("expected %d bytes, got %d more", r.at, len(r.rest))
	}
	if r.err != nil {
		return fmt.Errorf("tpm: %s: %w", structure, r.err)
	}
	return nil
}
