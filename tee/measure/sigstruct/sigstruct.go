// Package sigstruct reads an SGX enclave's SIGSTRUCT and predicts from it what
// the enclave's quotes will say: MRENCLAVE, MRSIGNER, product and security
// version (Intel SDM, volume 3D, §"Enclave Signature Structure (SIGSTRUCT)").
//
// The signature and its auxiliary values are verified as EINIT does, so a file
// that parses is one that a processor accepts, if its launch policy does. Nothing
// here was compared with an enclave running on hardware.
package sigstruct

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// Size is the size of a SIGSTRUCT in bytes.
const Size = 1808

// Offsets.
const (
	offVendor        = 16
	offDate          = 20
	offHeader2       = 24
	offReserved1     = 44
	offModulus       = 128
	offExponent      = 512
	offSignature     = 516
	offMiscSelect    = 900
	offMiscMask      = 904
	offReserved2     = 910
	offFamilyID      = 912
	offAttributes    = 928
	offAttributeMask = 944
	offEnclaveHash   = 960
	offReserved3     = 992
	offExtProdID     = 1008
	offProdID        = 1024
	offSVN           = 1026
	offReserved4     = 1028
	offQ1            = 1040
	offQ2            = 1424

	keySize     = 384 // RSA-3072
	exponent    = 3
	vendorIntel = 0x8086
)

// Bits of ATTRIBUTES.FLAGS (Intel SDM, volume 3D, §"ATTRIBUTES").
const (
	// FlagDebug lets the host read the enclave's memory.
	FlagDebug = 1 << 1
	// FlagKSS lets quotes carry family, extended product and configuration
	// identifiers.
	FlagKSS = 1 << 7
)

// Attributes are an enclave's FLAGS and XFRM.
type Attributes struct{ Flags, XFRM uint64 }

// Sigstruct is an enclave's signature structure, verified.
type Sigstruct struct {
	Vendor uint32 // 0, or 0x8086 for Intel's own enclaves
	Date   uint32 // yyyymmdd in BCD

	MRENCLAVE [32]byte
	MRSIGNER  [32]byte // SHA-256 of the key's modulus

	ProductID, SVN         uint16
	FamilyID, ExtProductID [16]byte
	Attributes             Attributes
	AttributeMask          Attributes // bits that the enclave's attributes must have as in Attributes
	MiscSelect, MiscMask   uint32
}

// AllowsDebug says whether the enclave may be started for debugging: the flag is
// set, or not masked.
func (s Sigstruct) AllowsDebug() bool {
	return s.Attributes.Flags&FlagDebug != 0 || s.AttributeMask.Flags&FlagDebug == 0
}

// Parse reads a SIGSTRUCT of exactly [Size] bytes and verifies it. All problems
// are reported.
func Parse(raw []byte) (Sigstruct, error) {
	if len(raw) != Size {
		return Sigstruct{}, fmt.Errorf("sigstruct: expected %d bytes, got %d", Size, len(raw))
	}
	le := binary.LittleEndian
	attributes := func(off int) Attributes { return Attributes{le.Uint64(raw[off:]), le.Uint64(raw[off+8:])} }
	s := Sigstruct{
		Vendor: le.Uint32(raw[offVendor:]), Date: le.Uint32(raw[offDate:]),
		MRENCLAVE: [32]byte(raw[offEnclaveHash:]), MRSIGNER: sha256.Sum256(raw[offModulus : offModulus+keySize]),
		ProductID: le.Uint16(raw[offProdID:]), SVN: le.Uint16(raw[offSVN:]),
		FamilyID: [16]byte(raw[offFamilyID:]), ExtProductID: [16]byte(raw[offExtProdID:]),
		Attributes: attributes(offAttributes), AttributeMask: attributes(offAttributeMask),
		MiscSelect: le.Uint32(raw[offMiscSelect:]), MiscMask: le.Uint32(raw[offMiscMask:]),
	}
	if err := errors.Join(constants(raw), s.date(), verify(raw)); err != nil {
		return Sigstruct{}, err
	}
	return s, nil
}

// constants checks what has one value in every SIGSTRUCT.
func constants(raw []byte) error {
	var errs []error
	expect := func(name string, off int, want string) {
		if got := hex.EncodeToString(raw[off : off+len(want)/2]); got != want {
			errs = append(errs, fmt.Errorf("sigstruct: %s: expected %s, got %s", name, want, got))
		}
	}
	zero := func(name string, from, to int) {
		if !bytes.Equal(raw[from:to], make([]byte, to-from)) {
			errs = append(errs, fmt.Errorf("sigstruct: %s: expected zeroes from byte %d to %d", name, from, to))
		}
	}
	expect("header", 0, "06000000e10000000000010000000000")
	expect("header2", offHeader2, "01010000600000006000000001000000")
	expect("exponent", offExponent, "03000000")
	if v := binary.LittleEndian.Uint32(raw[offVendor:]); v != 0 && v != vendorIntel {
		errs = append(errs, fmt.Errorf("sigstruct: vendor: expected 0 or %#x, got %#x", vendorIntel, v))
	}
	zero("reserved", offReserved1, offModulus)
	zero("reserved", offReserved2, offFamilyID)
	zero("reserved", offReserved3, offExtProdID)
	zero("reserved", offReserved4, offQ1)
	return errors.Join(errs...)
}

// date checks that the date is digits, of a month and a day.
func (s Sigstruct) date() error {
	text := fmt.Sprintf("%08x", s.Date)
	if bytes.ContainsAny([]byte(text), "abcdef") || text[4:6] < "01" || text[4:6] > "12" || text[6:] < "01" || text[6:] > "31" {
		return fmt.Errorf("sigstruct: date: expected yyyymmdd, got %s", text)
	}
	return nil
}

// number is a little-endian one of keySize bytes.
func number(raw []byte, off int) *big.Int {
	b := slices.Clone(raw[off : off+keySize])
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

// verify checks the signature (PKCS #1 v1.5, SHA-256, over the first 128 bytes
// and the 128 from MISCSELECT on), and the quotients that let the processor check
// it without a division.
func verify(raw []byte) error {
	m, sig := number(raw, offModulus), number(raw, offSignature)
	if m.BitLen() != 8*keySize || m.Bit(0) == 0 {
		return fmt.Errorf("sigstruct: modulus: expected an odd number of %d bits, got %d bits", 8*keySize, m.BitLen())
	}
	h := sha256.New()
	_, _ = h.Write(raw[:offModulus])
	_, _ = h.Write(raw[offMiscSelect:offReserved4])
	key := &rsa.PublicKey{N: m, E: exponent}
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, h.Sum(nil), sig.FillBytes(make([]byte, keySize))); err != nil {
		return fmt.Errorf("sigstruct: signature: is not that of the key in it: %w", err)
	}
	q1, q2 := quotients(sig, m)
	if number(raw, offQ1).Cmp(q1) != 0 || number(raw, offQ2).Cmp(q2) != 0 {
		return errors.New("sigstruct: q1, q2: are not the signature's quotients")
	}
	return nil
}

// quotients are floor(s²/m) and floor((s³ − q1·s·m)/m).
func quotients(s, m *big.Int) (q1, q2 *big.Int) {
	q1, rest := new(big.Int).DivMod(new(big.Int).Mul(s, s), m, new(big.Int))
	return q1, new(big.Int).Div(rest.Mul(rest, s), m)
}
