package dcap

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

// intelQE is what never changes in the identity of Intel's quoting enclave: its
// signer and its product (mrsigner and isvprodid of the identities QE and TD_QE
// that the PCS serves).
func intelQE(k Kind) (signer [32]byte, product uint16) {
	if k == TDX {
		return [32]byte{
			0xdc, 0x9e, 0x2a, 0x7c, 0x6f, 0x94, 0x8f, 0x17, 0x47, 0x4e, 0x34, 0xa7, 0xfc, 0x43, 0xed, 0x03,
			0x0f, 0x7c, 0x15, 0x63, 0xf1, 0xba, 0xbd, 0xdf, 0x63, 0x40, 0xc8, 0x2e, 0x0e, 0x54, 0xa8, 0xc5,
		}, 2
	}
	return [32]byte{
		0x8c, 0x4f, 0x57, 0x75, 0xd7, 0x96, 0x50, 0x3e, 0x96, 0x13, 0x7f, 0x77, 0xc6, 0x8a, 0x82, 0x9a,
		0x00, 0x56, 0xac, 0x8d, 0xed, 0x70, 0x14, 0x0b, 0x08, 0x1b, 0x09, 0x44, 0x90, 0xc5, 0x7b, 0xff,
	}, 1
}

// checkIntelQE stands in for the identity of the quoting enclave where there is
// none. Whoever has a genuine platform can have its certification key vouch for
// an enclave of their own, which then signs whatever it is told: a quote without
// a known quoting enclave proves nothing, whatever collateral may be missing.
func checkIntelQE(k Kind, r *dcapquote.EnclaveReport) []tee.Failure {
	signer, product := intelQE(k)
	var out []tee.Failure
	differ := func(field string, want, got []byte) {
		if bytes.Equal(want, got) {
			return
		}
		out = append(out, tee.Failure{
			Check: string(k) + ".qe_identity", Field: "qe_report." + field, Expected: fmt.Sprintf("%x", want), Got: fmt.Sprintf("%x", got),
			Help: "the quote was not made by Intel's quoting enclave of this kind",
		})
	}
	differ("mr_signer", signer[:], r.MRSigner[:])
	differ("isv_prod_id", binary.LittleEndian.AppendUint16(nil, product), binary.LittleEndian.AppendUint16(nil, r.ISVProdID))
	return out
}
