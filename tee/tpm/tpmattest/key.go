package tpmattest

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Hierarchy is where an attestation key is made.
type Hierarchy uint32

// The hierarchies. Keys below the endorsement seed survive a change of owner.
const (
	Endorsement = Hierarchy(tpm2.TPMRHEndorsement)
	Owner       = Hierarchy(tpm2.TPMRHOwner)
)

// KeyKind is the algorithm of an attestation key that is made.
type KeyKind string

// The kinds of keys.
const (
	RSA2048   KeyKind = "rsa2048"    // RSASSA-SHA256: what every verifier takes
	RSA2048PS KeyKind = "rsa2048pss" // RSAPSS-SHA256
	P256      KeyKind = "p256"       // ECDSA-SHA256
	P384      KeyKind = "p384"       // ECDSA-SHA384
)

// template is a restricted signing key.
func (k KeyKind) template() (tpm2.TPMTPublic, error) {
	out := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, Restricted: true, SignEncrypt: true,
		},
	}
	rsa := func(scheme tpm2.TPMTRSAScheme) {
		out.Type = tpm2.TPMAlgRSA
		out.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Scheme: scheme, KeyBits: 2048})
	}
	ecc := func(curve tpm2.TPMECCCurve, hash tpm2.TPMIAlgHash) {
		out.Type = tpm2.TPMAlgECC
		out.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: curve,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
			},
		})
	}
	switch k {
	case RSA2048:
		rsa(tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})})
	case RSA2048PS:
		rsa(tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSAPSS, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256})})
	case P256:
		ecc(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256)
	case P384:
		ecc(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384)
	default:
		return out, fmt.Errorf("tpmattest: kind of key: expected %s, %s, %s or %s, got %q", RSA2048, RSA2048PS, P256, P384, k)
	}
	return out, nil
}

// CreateKey makes a restricted signing key and keeps it at the persistent
// handle. Hierarchies must have empty passwords. The key is derived from the
// TPM's seed: the same TPM makes the same key again.
func CreateKey(t transport.TPM, h Hierarchy, kind KeyKind, handle uint32) (*Key, error) {
	template, err := kind.template()
	if err != nil {
		return nil, err
	}
	if h != Endorsement && h != Owner {
		return nil, fmt.Errorf("tpmattest: hierarchy: expected Endorsement or Owner, got %#x", uint32(h))
	}
	made, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(h), Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("tpmattest: making an attestation key: %w", err)
	}
	_, err = tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:     &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name},
		PersistentHandle: tpm2.TPMHandle(handle),
	}.Execute(t)
	_, flush := tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("tpmattest: keeping the attestation key at %#x: %w", handle, err)
	}
	if flush != nil {
		return nil, fmt.Errorf("tpmattest: dropping the transient copy of the attestation key: %w", flush)
	}
	return ReadKey(t, handle)
}
