package tpm

import (
	"encoding/binary"
	"fmt"
)

// Limits and constants of a quote.
const (
	// MaxMessage is the greatest length of a TPMS_ATTEST in bytes; the
	// greatest that TPMs make is below 512.
	MaxMessage = 1 << 10

	generated   = 0xFF544347 // TPM_GENERATED_VALUE (§6.2, table 7)
	attestQuote = 0x8018     // TPM_ST_ATTEST_QUOTE (§6.9, table 19)

	maxName   = 2 + 64 // TPM2B_NAME: algorithm and the longest digest
	maxExtra  = 2 + 64 // TPM2B_DATA: sizeof(TPMT_HA)
	maxDigest = 64
	maxBanks  = 16
	maxSelect = 4 // bytes of a PCR selection: 32 registers
)

// Selection names registers of one bank (TPMS_PCR_SELECTION, §10.9.7).
type Selection struct {
	// Bank is the bank's hash algorithm.
	Bank Alg
	// Bitmap has bit i%8 of byte i/8 set for register i.
	Bitmap []byte
}

// Has reports whether register i is selected.
func (s Selection) Has(i int) bool {
	return i >= 0 && i/8 < len(s.Bitmap) && s.Bitmap[i/8]>>(i%8)&1 == 1
}

// Mask has bit i set for register i.
func (s Selection) Mask() uint32 {
	var b [maxSelect]byte
	copy(b[:], s.Bitmap)
	return binary.LittleEndian.Uint32(b[:])
}

// Attest is what a TPM signs (TPMS_ATTEST, §10.12.12, of type quote).
type Attest struct {
	// QualifiedSigner is the qualified name of the signing key.
	QualifiedSigner []byte
	// ExtraData is the caller's: the nonce.
	ExtraData []byte
	// Clock is in milliseconds of being powered.
	Clock uint64
	// ResetCount and RestartCount are obfuscated by keys outside of the
	// endorsement hierarchy: they tell a reset, not how many there were.
	ResetCount, RestartCount uint32
	// Safe is whether Clock has never been greater.
	Safe bool
	// FirmwareVersion is vendor-specific, and obfuscated like the counters.
	FirmwareVersion uint64
	// Selections are the quoted registers, in the order of the digest.
	Selections []Selection
	// PCRDigest is the digest of their values, with the hash algorithm of
	// the signature scheme.
	PCRDigest []byte
}

// ParseAttest reads the quote in message. It refuses everything that no TPM
// makes: other magic or type, flags beyond 0 and 1, and bytes left over. The
// result refers to message.
func ParseAttest(message []byte) (*Attest, error) {
	if len(message) > MaxMessage {
		return nil, fmt.Errorf("tpm: message: expected at most %d bytes, got %d", MaxMessage, len(message))
	}
	r := &reader{rest: message}
	if magic := r.u32("magic"); magic != generated {
		r.fail("magic", fmt.Errorf("expected %#x (made by a TPM), got %#x", uint32(generated), magic))
	}
	if kind := r.u16("type"); kind != attestQuote {
		r.fail("type", fmt.Errorf("expected %#x (a quote), got %#x", attestQuote, kind))
	}
	a := &Attest{
		QualifiedSigner: r.sized("qualifiedSigner", maxName),
		ExtraData:       r.sized("extraData", maxExtra),
		Clock:           r.u64("clockInfo.clock"),
		ResetCount:      r.u32("clockInfo.resetCount"),
		RestartCount:    r.u32("clockInfo.restartCount"),
	}
	safe := r.u8("clockInfo.safe")
	if safe > 1 {
		r.fail("clockInfo.safe", fmt.Errorf("expected 0 or 1, got %d", safe))
	}
	a.Safe = safe == 1
	a.FirmwareVersion = r.u64("firmwareVersion")
	a.Selections = r.selections()
	a.PCRDigest = r.sized("pcrDigest", maxDigest)
	if err := r.end("message"); err != nil {
		return nil, err
	}
	return a, nil
}

func (r *reader) selections() []Selection {
	n := r.u32("pcrSelect.count")
	if n > maxBanks {
		r.fail("pcrSelect.count", fmt.Errorf("expected at most %d, got %d", maxBanks, n))
	}
	if r.err != nil {
		return nil
	}
	out := make([]Selection, 0, n)
	for i := range n {
		field := fmt.Sprintf("pcrSelect[%d]", i)
		bank := Alg(r.u16(field + ".hash"))
		size := int(r.u8(field + ".sizeofSelect"))
		if size == 0 || size > maxSelect {
			r.fail(field+".sizeofSelect", fmt.Errorf("expected 1 to %d, got %d", maxSelect, size))
		}
		if r.err != nil {
			return nil
		}
		out = append(out, Selection{Bank: bank, Bitmap: r.take(field+".pcrSelect", size)})
	}
	return out
}

// Bytes is the binary form of the quote: what [ParseAttest] reads.
func (a *Attest) Bytes() []byte {
	be := binary.BigEndian
	out := be.AppendUint32(nil, generated)
	out = be.AppendUint16(out, attestQuote)
	out = appendSized(out, a.QualifiedSigner)
	out = appendSized(out, a.ExtraData)
	out = be.AppendUint64(out, a.Clock)
	out = be.AppendUint32(out, a.ResetCount)
	out = be.AppendUint32(out, a.RestartCount)
	safe := byte(0)
	if a.Safe {
		safe = 1
	}
	out = append(out, safe)
	out = be.AppendUint64(out, a.FirmwareVersion)
	out = be.AppendUint32(out, uint32(len(a.Selections)))
	for _, s := range a.Selections {
		out = be.AppendUint16(out, uint16(s.Bank))
		out = append(append(out, byte(len(s.Bitmap))), s.Bitmap...)
	}
	return appendSized(out, a.PCRDigest)
}

func appendSized(out, data []byte) []byte {
	return append(binary.BigEndian.AppendUint16(out, uint16(len(data))), data...)
}
