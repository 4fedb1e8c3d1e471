package dcapmint

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

// Platform is a machine with a quoting enclave: it signs quotes. Its fields may
// be stored and put together again. It is safe for concurrent use as long as
// nobody changes them.
type Platform struct {
	// PCK is the certification key, with its certificate.
	PCK Holder
	// Chain is the PEM chain of that certificate.
	Chain []byte
	// AttestationKey is the quoting enclave's.
	AttestationKey *ecdsa.PrivateKey
	// QEReport names the key, and QESignature is the PCK's over the report.
	QEReport    []byte
	QESignature [dcapquote.SignatureSize]byte
	QEAuthData  []byte
}

// NewPlatform makes a platform with new keys, certified by a. qe is the quoting
// enclave's report; its report data is replaced.
func NewPlatform(a *Authority, pck *dcapquote.PCK, ca dcap.CA, qe dcapquote.EnclaveReport) (*Platform, error) {
	p := new(Platform)
	var err error
	if p.PCK.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("dcapmint: %w", err)
	}
	if p.PCK.Certificate, err = a.IssuePCK(pck, ca, &p.PCK.Key.PublicKey); err != nil {
		return nil, err
	}
	if p.Chain, err = a.PCKChain(p.PCK.Certificate, ca); err != nil {
		return nil, err
	}
	if p.AttestationKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("dcapmint: %w", err)
	}
	p.QEAuthData = make([]byte, 32)
	for i := range p.QEAuthData {
		p.QEAuthData[i] = byte(i) // Intel's quoting enclave has the same
	}
	return p, p.Certify(qe)
}

// Certify has a quoting enclave vouch for the attestation key: its report with
// the report data that says so, signed with the PCK.
func (p *Platform) Certify(qe dcapquote.EnclaveReport) error {
	key, err := p.attestationKey()
	if err != nil {
		return err
	}
	bound := sha256.Sum256(append(key[:], p.QEAuthData...))
	qe.ReportData = [64]byte{}
	copy(qe.ReportData[:], bound[:])
	p.QEReport = qe.Bytes()
	p.QESignature, err = signRaw(p.PCK.Key, p.QEReport)
	return err
}

func (p *Platform) attestationKey() (out [dcapquote.KeySize]byte, err error) {
	point, err := p.AttestationKey.PublicKey.Bytes()
	if err != nil {
		return out, fmt.Errorf("dcapmint: attestation key: %w", err)
	}
	copy(out[:], point[1:])
	return out, nil
}

// Quote signs header and body and returns the whole quote. version is the
// header's and decides the form of the signature section.
func (p *Platform) Quote(signed []byte, version uint16) ([]byte, error) {
	s := dcapquote.Signature{QEReport: p.QEReport, QESignature: p.QESignature, QEAuthData: p.QEAuthData, Chain: p.Chain}
	var err error
	if s.AttestationKey, err = p.attestationKey(); err != nil {
		return nil, err
	}
	if s.Quote, err = signRaw(p.AttestationKey, signed); err != nil {
		return nil, err
	}
	section, err := s.Bytes(version)
	if err != nil {
		return nil, fmt.Errorf("dcapmint: %w", err)
	}
	return append(append([]byte(nil), signed...), section...), nil
}
