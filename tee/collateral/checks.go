package collateral

import (
	"crypto/x509"

	"github.com/coffer-project/coffer/tee/csv/csvverify"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaverify"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
)

// DevelopmentRoots are roots that are not the vendors', as the verifiers are
// configured with.
type DevelopmentRoots struct {
	AMD    []snpverify.DevelopmentRoot
	Intel  []dcap.DevelopmentRoot
	NVIDIA []nvidiaverify.DevelopmentRoot
}

// DefaultChecks are the verifiers' own, under the vendors' roots and those given.
func DefaultChecks(d DevelopmentRoots) (Checks, error) {
	roots, err := dcap.Roots(d.Intel...)
	if err != nil {
		return Checks{}, err
	}
	signed := func(body, chain []byte) dcap.Signed { return dcap.Signed{Body: body, IssuerChain: chain} }
	return Checks{
		VCEK: func(der []byte, g snp.Generation, chipID []byte, tcb snp.TCB) error {
			return snpverify.CheckVCEK(der, g, chipID, tcb, d.AMD...)
		},
		AMDCRL: func(der []byte, g snp.Generation, s snp.Signer) (*x509.RevocationList, error) {
			return snpverify.CheckCRL(der, g, s, d.AMD...)
		},
		AMDChain: func(chain []byte, g snp.Generation, s snp.Signer) error {
			return snpverify.CheckChain(chain, g, s, d.AMD...)
		},
		TCBInfo: func(body, chain []byte) (Document, error) {
			t, err := dcap.ParseTCBInfo(signed(body, chain), roots)
			if err != nil {
				return Document{}, err
			}
			return Document{ID: t.ID, FMSPC: t.FMSPC, Issued: t.IssueDate, NextUpdate: t.NextUpdate}, nil
		},
		QEIdentity: func(body, chain []byte) (Document, error) {
			q, err := dcap.ParseQEIdentity(signed(body, chain), roots)
			if err != nil {
				return Document{}, err
			}
			return Document{ID: q.ID, Issued: q.IssueDate, NextUpdate: q.NextUpdate}, nil
		},
		PCKCRL: func(der, chain []byte, ca string) (*x509.RevocationList, error) {
			return dcap.ParsePCKCRL(signed(der, chain), dcap.CA(ca), roots)
		},
		RootCRL: func(der []byte) (*x509.RevocationList, error) { return dcap.ParseRootCRL(der, roots) },
		RIM: func(id string, body []byte) error {
			return nvidiaverify.CheckRIM(id, body, d.NVIDIA...)
		},
		// Hygon's certificates do not say whose chip they are of.
		HSKCEK: func(_ string, body []byte) error { return csvverify.CheckHSKCEK(body) },
	}, nil
}
