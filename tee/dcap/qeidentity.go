package dcap

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

// QEIdentity is what Intel says about its quoting enclave (PCS API version 4,
// "EnclaveIdentity", format version 2).
type QEIdentity struct {
	ID                   string // "QE" for SGX, "TD_QE" for TDX
	Version              int    // 2
	EvaluationDataNumber int
	IssueDate            time.Time
	NextUpdate           time.Time
	// MiscSelect, Attributes and their masks are the bytes as the enclave
	// report has them, little-endian.
	MiscSelect     [4]byte
	MiscSelectMask [4]byte
	Attributes     [16]byte
	AttributesMask [16]byte
	MRSigner       [32]byte
	ISVProdID      uint16
	// Levels are in Intel's order, the best first.
	Levels []EnclaveLevel

	// Root is the anchor of IssuerChain, which is the signer first.
	Root        *Root
	IssuerChain []*x509.Certificate
}

type wireQEIdentity struct {
	ID                   string             `json:"id"`
	Version              int                `json:"version"`
	IssueDate            time.Time          `json:"issueDate"`
	NextUpdate           time.Time          `json:"nextUpdate"`
	EvaluationDataNumber int                `json:"tcbEvaluationDataNumber"`
	MiscSelect           hexBytes           `json:"miscselect"`
	MiscSelectMask       hexBytes           `json:"miscselectMask"`
	Attributes           hexBytes           `json:"attributes"`
	AttributesMask       hexBytes           `json:"attributesMask"`
	MRSigner             hexBytes           `json:"mrsigner"`
	ISVProdID            *uint16            `json:"isvprodid"`
	Levels               []wireEnclaveLevel `json:"tcbLevels"`
}

// ParseQEIdentity reads a QE identity and checks its signature and that the
// signer's chain ends in one of r. Dates are not judged.
func ParseQEIdentity(s Signed, r *RootSet) (*QEIdentity, error) {
	inner, signature, err := openQEIdentity(s.Body)
	if err != nil {
		return nil, fmt.Errorf("dcap: QE identity: %w", err)
	}
	chain, root, err := signedBy(inner, signature, s.IssuerChain, r)
	if err != nil {
		return nil, fmt.Errorf("dcap: QE identity: %w", err)
	}
	var w wireQEIdentity
	if err := json.Unmarshal(inner, &w); err != nil {
		return nil, fmt.Errorf("dcap: QE identity: %w", err)
	}
	q, err := w.decode()
	if err != nil {
		return nil, fmt.Errorf("dcap: QE identity: %w", err)
	}
	q.Root, q.IssuerChain = root, chain
	return q, nil
}

func (w *wireQEIdentity) decode() (*QEIdentity, error) {
	q := &QEIdentity{
		ID: w.ID, Version: w.Version, EvaluationDataNumber: w.EvaluationDataNumber,
		IssueDate: w.IssueDate, NextUpdate: w.NextUpdate,
	}
	if w.Version != 2 {
		return nil, fmt.Errorf("version: expected 2, got %d", w.Version)
	}
	if w.ID != "QE" && w.ID != "TD_QE" {
		return nil, fmt.Errorf("id: expected QE or TD_QE, got %.20q", w.ID)
	}
	if w.ISVProdID == nil {
		return nil, fmt.Errorf("isvprodid: expected a number, got none")
	}
	q.ISVProdID = *w.ISVProdID
	for _, err := range []error{
		fixed("miscselect", q.MiscSelect[:], w.MiscSelect), fixed("miscselectMask", q.MiscSelectMask[:], w.MiscSelectMask),
		fixed("attributes", q.Attributes[:], w.Attributes), fixed("attributesMask", q.AttributesMask[:], w.AttributesMask),
		fixed("mrsigner", q.MRSigner[:], w.MRSigner), checkDates(w.IssueDate, w.NextUpdate),
	} {
		if err != nil {
			return nil, err
		}
	}
	var err error
	if q.Levels, err = enclaveLevels(w.Levels); err != nil {
		return nil, err
	}
	if len(q.Levels) == 0 {
		return nil, fmt.Errorf("tcbLevels: expected at least one")
	}
	return q, nil
}

// check compares a quoting enclave's report with the identity, patch level
// aside. The failures lack the check's prefix.
func (q *QEIdentity) check(prefix string, r *dcapquote.EnclaveReport) []tee.Failure {
	var out []tee.Failure
	differ := func(field string, want, got []byte) {
		out = append(out, tee.Failure{
			Check: prefix + ".qe_identity", Field: "qe_report." + field, Expected: fmt.Sprintf("%x", want), Got: fmt.Sprintf("%x", got),
			Help: "the quote was not made by Intel's quoting enclave of this kind",
		})
	}
	if r.MRSigner != q.MRSigner {
		differ("mr_signer", q.MRSigner[:], r.MRSigner[:])
	}
	if r.ISVProdID != q.ISVProdID {
		differ("isv_prod_id", binary.LittleEndian.AppendUint16(nil, q.ISVProdID), binary.LittleEndian.AppendUint16(nil, r.ISVProdID))
	}
	misc := binary.LittleEndian.AppendUint32(nil, r.MiscSelect)
	if masked := mask(misc, q.MiscSelectMask[:]); string(masked) != string(q.MiscSelect[:]) {
		differ("misc_select", q.MiscSelect[:], masked)
	}
	attributes := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, r.Flags), r.XFRM)
	if masked := mask(attributes, q.AttributesMask[:]); string(masked) != string(q.Attributes[:]) {
		differ("attributes", q.Attributes[:], masked)
	}
	return out
}

// mask is the bitwise conjunction of two byte strings of one length.
func mask(value, mask []byte) []byte {
	out := make([]byte, len(value))
	for i := range value {
		out[i] = value[i] & mask[i]
	}
	return out
}
