package tpmattest

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"github.com/coffer-project/coffer/tee/tpm"
)

// ErrNoTPM says that a machine has no TPM 2.0 device.
var ErrNoTPM = errors.New("tpmattest: no TPM device")

// DefaultDevices are the device files of Linux, the one with the kernel's
// resource manager first.
func DefaultDevices() []string { return []string{"/dev/tpmrm0", "/dev/tpm0"} }

// Open opens the first of the device files that exists. Without any the error
// is [ErrNoTPM].
func Open(paths ...string) (transport.TPMCloser, error) {
	for _, path := range paths {
		t, err := linuxtpm.Open(path)
		switch {
		case err == nil:
			return t, nil
		case !errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("tpmattest: %s: %w", path, err)
		}
	}
	return nil, fmt.Errorf("%w: none of %v exists", ErrNoTPM, paths)
}

// Key is a signing key in a TPM.
type Key struct {
	Handle tpm2.TPMHandle
	Name   tpm2.TPM2BName
	Public *tpm2.TPMTPublic
}

// ReadKey reads the public part of the key at handle. Where there is no key,
// the error matches tpm2.TPMRCHandle.
func ReadKey(t transport.TPM, handle uint32) (*Key, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("tpmattest: key %#x: %w", handle, err)
	}
	public, err := r.OutPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("tpmattest: key %#x: public part: %w", handle, err)
	}
	return &Key{Handle: tpm2.TPMHandle(handle), Name: r.Name, Public: public}, nil
}

// SPKI is the public key as SubjectPublicKeyInfo, DER.
func (k *Key) SPKI() ([]byte, error) {
	public, err := tpm2.Pub(*k.Public)
	if err != nil {
		return nil, fmt.Errorf("tpmattest: key %#x: %w", uint32(k.Handle), err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("tpmattest: key %#x: %w", uint32(k.Handle), err)
	}
	return der, nil
}

// restrictedSigner refuses keys whose signature would prove nothing: one that is
// not restricted signs structures that the TPM did not make.
func (k *Key) restrictedSigner() error {
	a := k.Public.ObjectAttributes
	if !a.SignEncrypt || !a.Restricted || !a.FixedTPM || a.Decrypt {
		return fmt.Errorf("tpmattest: key %#x: expected a restricted signing key that cannot leave the TPM, got sign %t, restricted %t, fixedTPM %t, decrypt %t",
			uint32(k.Handle), a.SignEncrypt, a.Restricted, a.FixedTPM, a.Decrypt)
	}
	return nil
}

// scheme is the signature scheme to ask for: none where the key has its own.
func (k *Key) scheme() (tpm2.TPMTSigScheme, error) {
	rsassa := tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})}
	own := tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}
	switch k.Public.Type {
	case tpm2.TPMAlgRSA:
		p, err := k.Public.Parameters.RSADetail()
		if err != nil {
			return own, fmt.Errorf("tpmattest: key %#x: %w", uint32(k.Handle), err)
		}
		if p.Scheme.Scheme == tpm2.TPMAlgNull {
			return rsassa, nil
		}
		return own, nil
	case tpm2.TPMAlgECC:
		return own, nil
	}
	return own, fmt.Errorf("tpmattest: key %#x: expected RSA or ECC, got algorithm %#x", uint32(k.Handle), uint16(k.Public.Type))
}

// Quoted is a quote with the register values that it covers.
type Quoted struct {
	tpm.Quote
	// Parsed is the signature in Quote.
	Parsed *tpm.Signature
}

// maxRaces is how often a quote is repeated because a register changed between
// it and the reading of the registers.
const maxRaces = 5

// Quote has key sign nonce and all registers of the SHA-256 bank, and reads
// them. The result is consistent: values and digest agree.
func Quote(t transport.TPM, key *Key, nonce []byte) (*Quoted, error) {
	scheme, err := key.scheme()
	if err != nil {
		return nil, err
	}
	for range maxRaces {
		q, a, err := quoteOnce(t, key, scheme, nonce)
		if err != nil {
			return nil, err
		}
		if q.Quote.PCRs, err = ReadPCRs(t); err != nil {
			return nil, err
		}
		if bytes.Equal(digestOf(q.Parsed.Hash, &q.Quote.PCRs), a.PCRDigest) {
			return q, nil
		}
	}
	return nil, fmt.Errorf("tpmattest: registers: expected values with the quoted digest, got others %d times; what keeps extending them?", maxRaces)
}

func quoteOnce(t transport.TPM, key *Key, scheme tpm2.TPMTSigScheme, nonce []byte) (*Quoted, *tpm.Attest, error) {
	r, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: key.Handle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: nonce},
		InScheme:       scheme,
		PCRSelect:      selection(allPCRs),
	}.Execute(t)
	if err != nil {
		return nil, nil, fmt.Errorf("tpmattest: quote by key %#x: %w", uint32(key.Handle), err)
	}
	q := &Quoted{Quote: tpm.Quote{Message: r.Quoted.Bytes(), Signature: tpm2.Marshal(r.Signature)}}
	a, err := tpm.ParseAttest(q.Message)
	if err != nil {
		return nil, nil, fmt.Errorf("tpmattest: quote: %w", err)
	}
	if q.Parsed, err = tpm.ParseSignature(q.Signature); err != nil {
		return nil, nil, fmt.Errorf("tpmattest: quote: %w", err)
	}
	if !bytes.Equal(a.ExtraData, nonce) {
		return nil, nil, fmt.Errorf("tpmattest: quote: nonce: expected %x, got %x", nonce, a.ExtraData)
	}
	return q, a, nil
}

// digestOf is the quote's digest of all registers; nil for hash algorithms that
// no verifier takes.
func digestOf(alg tpm.Alg, pcrs *tpm.PCRs) []byte {
	all := make([]byte, 0, len(pcrs)*sha256.Size)
	for i := range pcrs {
		all = append(all, pcrs[i][:]...)
	}
	switch alg {
	case tpm.AlgSHA256:
		sum := sha256.Sum256(all)
		return sum[:]
	case tpm.AlgSHA384:
		sum := sha512.Sum384(all)
		return sum[:]
	case tpm.AlgSHA512:
		sum := sha512.Sum512(all)
		return sum[:]
	}
	return nil
}
