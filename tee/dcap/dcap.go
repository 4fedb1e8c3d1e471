// Package dcap judges what the quotes of Intel SGX and Intel TDX have in
// common: that a genuine quoting enclave on a genuine platform made them, and
// what Intel's collateral says of that platform. Packages sgxverify and
// tdxverify build on it.
//
// # Collateral
//
// TCB info, QE identity and revocation lists come from a [Collateral], which
// may hand out stale documents: signatures and issuers are checked here when a
// document is parsed, dates when evidence is judged. Intel signs the exact
// bytes of a document's inner object; those bytes are what is verified, and only
// then decoded. Members that this package does not know are ignored, since
// Intel adds members within one version of a format, and it is Intel that
// signed them; a format version that is not known is refused, and so is a
// document with a name twice.
//
// # What is trusted
//
// Intel's SGX root certificate is embedded and pinned by its digest. A
// reissue of it is accepted if it carries the same key and name and its
// self-signature is good. Development roots (the software TEE's) are given by
// [Roots]; what ends in one is simulated. A platform's collateral must end in
// the same root as its PCK certificate.
//
// Sources: "Intel SGX and TDX Provisioning Certification Service" API version 4
// (api.portal.trustedservices.intel.com); "Intel SGX PCK Certificate and CRL
// Profile Specification"; the evaluation of TCB levels follows the PCS
// documentation, and, where it leaves a choice, Intel's quote verification
// library (intel/SGX-TDX-DCAP-QuoteVerificationLibrary, EvaluateTcb.cpp and
// TDRelaunchCheck.cpp of 2026).
package dcap

import (
	"context"
	"encoding/hex"
)

// Kind is which technology a document is about.
type Kind string

// The kinds.
const (
	SGX Kind = "sgx"
	TDX Kind = "tdx"
)

// CA is which of Intel's intermediates issued a PCK certificate, as the PCS
// spells it in "?ca=".
type CA string

// The issuers of PCK certificates.
const (
	ProcessorCA CA = "processor"
	PlatformCA  CA = "platform"
)

// Signed is a document with the chain of its signer.
type Signed struct {
	// Body is the document exactly as served.
	Body []byte
	// IssuerChain is PEM, signer first, root last.
	IssuerChain []byte
}

// Collateral gives what Intel says about platforms. Documents may be stale
// when nothing fresher can be had: whoever asks judges the dates. An error is
// normally a *[github.com/coffer-project/coffer/tee.CollateralError].
// Implementations are safe for concurrent use.
type Collateral interface {
	// TCBInfo is the JSON {"tcbInfo":{…},"signature":"…"} (PCS API version 4).
	TCBInfo(ctx context.Context, k Kind, fmspc [6]byte) (Signed, error)
	// QEIdentity is the JSON {"enclaveIdentity":{…},"signature":"…"}.
	QEIdentity(ctx context.Context, k Kind) (Signed, error)
	// PCKCRL is the revocation list of a PCK issuer, DER.
	PCKCRL(ctx context.Context, ca CA) (Signed, error)
	// RootCRL is the revocation list of the root, DER.
	RootCRL(ctx context.Context) ([]byte, error)
}

// FMSPCText is how Intel spells a platform family: 12 upper-case digits.
func FMSPCText(fmspc [6]byte) string { return upperHex(fmspc[:]) }

func upperHex(b []byte) string {
	const digits = "0123456789ABCDEF"
	out := make([]byte, 0, hex.EncodedLen(len(b)))
	for _, c := range b {
		out = append(out, digits[c>>4], digits[c&0xF])
	}
	return string(out)
}
