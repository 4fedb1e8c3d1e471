package tpmattest

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/coffer-project/coffer/tee/tpm"
)

const allPCRs = 1<<tpm.PCRCount - 1

// selection is the registers of mask in the SHA-256 bank, in three bytes as PC
// client TPMs want them.
func selection(mask uint32) tpm2.TPMLPCRSelection {
	bitmap := binary.LittleEndian.AppendUint32(nil, mask)[:tpm.PCRCount/8]
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bitmap}}}
}

// ReadPCRs reads all registers of the SHA-256 bank. A TPM answers with as many
// as fit (usually eight); where a register changes in between, the reading
// starts anew.
func ReadPCRs(t transport.TPM) (tpm.PCRs, error) {
	for range maxRaces {
		pcrs, same, err := readOnce(t)
		if err != nil || same {
			return pcrs, err
		}
	}
	return tpm.PCRs{}, fmt.Errorf("tpmattest: registers: they changed while they were read, %d times", maxRaces)
}

// readOnce reports whether no register changed from the first answer to the last.
func readOnce(t transport.TPM) (pcrs tpm.PCRs, same bool, err error) {
	var first uint32
	for todo := uint32(allPCRs); todo != 0; {
		r, err := tpm2.PCRRead{PCRSelectionIn: selection(todo)}.Execute(t)
		if err != nil {
			return pcrs, false, fmt.Errorf("tpmattest: reading registers %#06x: %w", todo, err)
		}
		if todo == allPCRs {
			first = r.PCRUpdateCounter
		} else if r.PCRUpdateCounter != first {
			return pcrs, false, nil
		}
		got, err := fill(&pcrs, todo, r)
		if err != nil {
			return pcrs, false, err
		}
		todo &^= got
	}
	return pcrs, true, nil
}

// fill takes over the registers of one answer and says which ones they are.
func fill(pcrs *tpm.PCRs, asked uint32, r *tpm2.PCRReadResponse) (uint32, error) {
	var got uint32
	values := r.PCRValues.Digests
	for _, s := range r.PCRSelectionOut.PCRSelections {
		if s.Hash != tpm2.TPMAlgSHA256 || len(s.PCRSelect) > 4 {
			return 0, fmt.Errorf("tpmattest: registers: expected the SHA-256 bank, got algorithm %#x and %d bytes of selection", uint16(s.Hash), len(s.PCRSelect))
		}
		mask := tpm.Selection{Bitmap: s.PCRSelect}.Mask()
		if mask&^asked != 0 || mask&got != 0 {
			return 0, fmt.Errorf("tpmattest: registers: expected some of %#06x, got %#06x", asked, mask)
		}
		got |= mask
		for i := range pcrs {
			if mask>>i&1 == 0 {
				continue
			}
			if len(values) == 0 || len(values[0].Buffer) != len(pcrs[i]) {
				return 0, fmt.Errorf("tpmattest: register %d: expected a value of %d bytes", i, len(pcrs[i]))
			}
			pcrs[i], values = [32]byte(values[0].Buffer), values[1:]
		}
	}
	if got == 0 {
		return 0, fmt.Errorf("tpmattest: registers %#06x: the TPM has no values for them; is its SHA-256 bank allocated?", asked)
	}
	return got, nil
}

// ReadPCR reads one register of the SHA-256 bank.
func ReadPCR(t transport.TPM, register int) ([]byte, error) {
	if register < 0 || register >= tpm.PCRCount {
		return nil, fmt.Errorf("tpmattest: register: expected 0 to %d, got %d", tpm.PCRCount-1, register)
	}
	pcrs, err := ReadPCRs(t)
	if err != nil {
		return nil, err
	}
	return pcrs[register][:], nil
}

// ExtendPCR extends a register of the SHA-256 bank.
func ExtendPCR(t transport.TPM, register int, digest [32]byte) error {
	if register < 0 || register >= tpm.PCRCount {
		return fmt.Errorf("tpmattest: register: expected 0 to %d, got %d", tpm.PCRCount-1, register)
	}
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(register), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(t)
	if err != nil {
		return fmt.Errorf("tpmattest: extending register %d: %w", register, err)
	}
	return nil
}

// BindInitData extends register 8 with the SHA-256 digest of initdata, which
// binds the initdata to all later quotes. A register that is so extended already
// stays as it is: an agent that starts again may call it again. A register that
// holds anything else is an error, since no verifier would accept it.
func BindInitData(t transport.TPM, digest []byte) error {
	if len(digest) != 32 {
		return fmt.Errorf("tpmattest: initdata digest: expected 32 bytes (SHA-256), got %d; write `algorithm = \"sha256\"` into the initdata", len(digest))
	}
	pcrs, err := ReadPCRs(t)
	if err != nil {
		return err
	}
	switch got := pcrs[tpm.InitDataPCR]; got {
	case tpm.Extended([32]byte(digest)):
		return nil
	case [32]byte{}:
		return ExtendPCR(t, tpm.InitDataPCR, [32]byte(digest))
	default:
		return fmt.Errorf("tpmattest: register %d: expected zeros, got %x: something else was measured into it (a boot loader?), or other initdata", tpm.InitDataPCR, got)
	}
}
