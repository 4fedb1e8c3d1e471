// Package csv reads the evidence of Hygon CSV (China Secure Virtualization):
// attestation reports of versions 1 to 3, and Hygon's certificates. The same
// package serves the guest and the verifier; nothing here checks a signature
// (see csvverify).
//
// Layouts are those of the csv-rs crate as found in
// wojiaohanliyang/csv-rs@b35dd21b (src/api/guest/types.rs, src/certs), and of
// confidential-containers/trustee@78962cd4 (deps/verifier/src/csv). All numbers
// are little-endian. Hygon publishes no specification.
package csv

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Sizes in bytes.
const (
	// PageSize is that of a report with everything around it.
	PageSize = 4096
	// SerialSize is that of a chip's serial number, padded with zeros.
	SerialSize = 64
	// ReportDataSize is that of report data and of version 3's host data.
	ReportDataSize = 64

	signedV1   = 0xB4
	infoV1     = 0x150
	signedV2   = 0x400
	infoV2     = 0x490
	hostDataAt = signedV2 - ReportDataSize
	signerSize = CertificateSize + SerialSize + 32 + 32
)

// Magic of extended reports, and the flags that say which.
const (
	extMagic      = "ATTESTATION_EXT\x00"
	flagsVersion2 = 1
	flagsVersion3 = 3
)

// Policy is what the guest's owner demanded at launch
// (csv-rs@b35dd21b, GuestPolicy).
type Policy uint32

// NoDebug is set where the host may not read and write the guest's memory.
func (p Policy) NoDebug() bool { return p&1 != 0 }

// claims are the fields of the policy, as numbers.
func (p Policy) claims() map[string]any {
	field := func(from, width int) int { return int(p>>from) & (1<<width - 1) }
	return map[string]any{
		"nodbg": field(0, 1), "noks": field(1, 1), "es": field(2, 1), "nosend": field(3, 1), "domain": field(4, 1), "csv": field(5, 1), "csv3": field(6, 1),
		"asid_reuse": field(7, 1), "hsk_version": field(8, 4), "cek_version": field(12, 4), "api_major": field(16, 8), "api_minor": field(24, 8),
	}
}

// Report is an attestation report. Version 1 is masked with a number of the
// firmware's (anonce): fields are without the mask, Signed is with it. Slices
// share memory with the input.
type Report struct {
	Version          int // 1, 2 or 3
	UserPubkeyDigest []byte
	VMID, VMVersion  []byte
	ReportData       []byte
	MNonce           []byte // of the guest's
	Measure          []byte
	Policy           Policy
	// SigUsage and SigAlgorithm say what signed: in version 1 they are not
	// part of Signed, and neither is Anonce.
	SigUsage     Usage
	SigAlgorithm uint32
	Anonce       []byte // version 1 only

	// The rest of what versions 2 and 3 say.
	Build       uint32
	RTMRVersion uint16
	Reserved0   []byte
	RTMR        [5][]byte
	Reserved1   []byte
	HostData    []byte // version 3 only

	// Signed is what Signature is over.
	Signed    []byte
	Signature Signature

	Signer Signer
}

// Signer is what follows the report: the key that signed it, and its chip. It is
// not signed.
type Signer struct {
	PEK    []byte // certificate, without mask
	Serial []byte // 64 bytes, without mask
	// MAC is an HMAC with SM3 under the guest's mnonce, which is in the report:
	// it protects against accidents. MACInput is what it is over, nil where the
	// guest's software has taken the mask off and the padding away.
	MAC, MACInput []byte
}

// version tells the version from what surrounds the page.
func version(magic [16]byte, flags uint32) (int, error) {
	switch {
	case magic == [16]byte{} && flags == 0, magic == [16]byte([]byte(extMagic)) && flags == 0:
		return 1, nil
	case magic == [16]byte([]byte(extMagic)) && flags == flagsVersion2:
		return 2, nil
	case magic == [16]byte([]byte(extMagic)) && flags == flagsVersion3:
		return 3, nil
	}
	return 0, fmt.Errorf("csv: report: expected the magic %q with flags 0, 1 or 3, or none, got %q with flags %#x", extMagic, magic[:], flags)
}

// ParseReport decodes the page that holds a report. magic and flags are those of
// the request that it answers: zeros for version 1.
func ParseReport(page []byte, magic [16]byte, flags uint32) (*Report, error) {
	if len(page) != PageSize {
		return nil, fmt.Errorf("csv: report: expected %d bytes, got %d", PageSize, len(page))
	}
	v, err := version(magic, flags)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	r := &Report{Version: v, Signed: page[:signedV2]}
	end, mask := infoV2, make([]byte, 4)
	if v == 1 {
		r.Signed, r.Anonce = page[:signedV1], page[188:192]
		end, mask = infoV1, r.Anonce
	}
	body := unmask(page[:188], mask)
	r.UserPubkeyDigest, r.VMID, r.VMVersion, r.ReportData = body[:32], body[32:48], body[48:64], body[64:128]
	r.MNonce, r.Measure, r.Policy = body[128:144], body[144:176], Policy(le.Uint32(body[176:]))
	r.SigUsage, r.SigAlgorithm = Usage(le.Uint32(body[180:])), le.Uint32(body[184:])
	if v > 1 {
		r.extended(page)
	}
	if r.Signature, err = parseSignature(page[end-sigSize : end]); err != nil {
		return nil, fmt.Errorf("csv: report: %w", err)
	}
	r.Signer = parseSigner(page[end:end+signerSize], mask)
	if !zero(page[end+signerSize:]) {
		return nil, fmt.Errorf("csv: report: expected zeros behind byte %d", end+signerSize)
	}
	return r, nil
}

func (r *Report) extended(page []byte) {
	le := binary.LittleEndian
	r.Build, r.RTMRVersion, r.Reserved0 = le.Uint32(page[188:]), le.Uint16(page[192:]), page[194:208]
	for i := range r.RTMR {
		r.RTMR[i] = page[208+32*i:][:32]
	}
	r.Reserved1 = page[368:signedV2]
	if r.Version == 3 {
		r.Reserved1, r.HostData = page[368:hostDataAt], page[hostDataAt:signedV2]
	}
}

// parseSigner reads the signer. The firmware masks it, and fills its padding with
// noise; guest software that has checked the MAC takes both away.
func parseSigner(b, mask []byte) Signer {
	s := Signer{PEK: b[:CertificateSize], Serial: b[CertificateSize:][:SerialSize], MAC: b[signerSize-32:]}
	padding := b[CertificateSize+SerialSize:][:32]
	if !zero(padding) {
		s.MACInput = b[:signerSize-32]
		s.PEK, s.Serial = unmask(s.PEK, mask), unmask(s.Serial, mask)
	}
	return s
}

// unmask returns b with the mask of four bytes taken off, or put on.
func unmask(b, mask []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = b[i] ^ mask[i%4]
	}
	return out
}

// Claims returns the report's claims, unverified, as csvverify documents them.
func (r *Report) Claims() map[string]any {
	h := hex.EncodeToString
	le := binary.LittleEndian
	m := map[string]any{
		"version": fmt.Sprint(r.Version), "policy": r.Policy.claims(), "user_pubkey_digest": h(r.UserPubkeyDigest), "vm_id": h(r.VMID), "vm_version": h(r.VMVersion),
		"report_data": h(r.ReportData), "mnonce": h(r.MNonce), "measure": h(r.Measure),
		"sig_usage": h(le.AppendUint32(nil, uint32(r.SigUsage))), "sig_algo": h(le.AppendUint32(nil, r.SigAlgorithm)),
	}
	if r.Version == 1 {
		m["anonce"] = h(r.Anonce)
		return m
	}
	m["build"], m["rtmr_version"], m["reserved0"], m["reserved1"] = int(r.Build), int(r.RTMRVersion), h(r.Reserved0), h(r.Reserved1)
	for i, v := range r.RTMR {
		m[fmt.Sprintf("rtmr%d", i)] = h(v)
	}
	if r.Version == 3 {
		m["host_data"] = h(r.HostData)
	}
	return m
}
