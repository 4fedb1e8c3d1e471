package softtee

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapmint"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

// collateralLife is how long the platform's collateral is current. It is signed
// anew when half of that has passed, so that a trustee which read it then has
// some months.
const collateralLife = 366 * 24 * time.Hour

// The platform that is simulated: up to date, with a TDX module of major version
// 1, which has patch level moduleSVN.
const (
	moduleMajor = 1
	moduleSVN   = 6
	pceSVN      = 13
	qeSVN       = 8
	qeProduct   = 2 // of the TD quoting enclave
	// evaluationNumber is that of Intel's documents; it means nothing here.
	evaluationNumber = 1
)

// platform is the made-up Intel's part of the software TEE: a hierarchy of its
// own with a machine that signs quotes.
type platform struct {
	authority *dcapmint.Authority
	machine   *dcapmint.Platform
	// root is the file of the development root.
	root []byte
}

// fmspc is the platform family, which Intel does not have.
func fmspc() [6]byte { return [6]byte{0xc0, 0xff, 0xee} }

// platformSVN are the platform's SGX TCB components.
func platformSVN() [16]byte { return [16]byte{5, 5, 2, 2, 3, 1, 0, 3} }

// teeSVN is the TEE_TCB_SVN of the platform's TDs.
func teeSVN() [16]byte { return [16]byte{moduleSVN, moduleMajor, 6} }

// qeSigner is the MRSIGNER of the quoting enclave, which nobody signs with.
func qeSigner() [32]byte { return sha256.Sum256([]byte("coffer software TEE: quoting enclave")) }

// quotingEnclave is the report of the simulated quoting enclave.
func quotingEnclave() dcapquote.EnclaveReport {
	return dcapquote.EnclaveReport{
		CPUSVN: platformSVN(), Flags: dcapquote.AttributeInit | dcapquote.AttributeMode64 | dcapquote.AttributeProvisionKey, XFRM: 0xe7,
		MREnclave: sha256.Sum256([]byte("coffer software TEE: code of the quoting enclave")), MRSigner: qeSigner(), ISVProdID: qeProduct, ISVSVN: qeSVN,
	}
}

// newPlatform makes a hierarchy and a machine. Unlike the chip's, the keys of the
// hierarchy are kept: collateral is signed with them again and again.
func newPlatform(random io.Reader, now time.Time) (*platform, error) {
	pck := &dcapquote.PCK{
		Components: platformSVN(), PCESVN: pceSVN, CPUSVN: platformSVN(), FMSPC: fmspc(), SGXType: dcapquote.SGXScalable,
		PlatformInstanceID: new([16]byte), Configuration: &dcapquote.Configuration{CachedKeys: true},
	}
	for _, id := range [][]byte{pck.PPID[:], pck.PlatformInstanceID[:]} {
		if _, err := io.ReadFull(random, id); err != nil {
			return nil, fmt.Errorf("softtee: platform identifier: %w", err)
		}
	}
	start := now.Add(-time.Hour).UTC().Truncate(time.Second)
	name := "Coffer software TEE TDX root " + hex.EncodeToString(pck.PPID[:4]) + " (" + Warning + ")"
	a, err := dcapmint.NewAuthority(dcapmint.Profile{RootName: name, Organization: Warning, From: start, To: start.AddDate(caYears, 0, 0)})
	if err != nil {
		return nil, fmt.Errorf("softtee: %w", err)
	}
	m, err := dcapmint.NewPlatform(a, pck, dcap.PlatformCA, quotingEnclave())
	if err != nil {
		return nil, fmt.Errorf("softtee: %w", err)
	}
	p := &platform{authority: a, machine: m}
	return p, p.signCollateral(now)
}

// signCollateral makes the development root's file.
func (p *platform) signCollateral(now time.Time) error {
	from := now.Add(-time.Hour).UTC().Truncate(time.Second)
	next := from.Add(collateralLife)
	all := [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	level := func(svn uint16) []dcap.EnclaveLevel {
		return []dcap.EnclaveLevel{{ISVSVN: svn, Date: from, Status: dcap.UpToDate}}
	}
	info, err := p.authority.TCBInfo(&dcap.TCBInfo{
		ID: "TDX", Version: 3, FMSPC: fmspc(), EvaluationDataNumber: evaluationNumber, IssueDate: from, NextUpdate: next,
		Module:  &dcap.ModuleIdentity{AttributesMask: all},
		Modules: []dcap.ModuleIdentity{{ID: fmt.Sprintf("TDX_%02d", moduleMajor), AttributesMask: all, Levels: level(moduleSVN)}},
		Levels:  []dcap.TCBLevel{{SGX: platformSVN(), TDX: teeSVN(), PCESVN: pceSVN, Date: from, Status: dcap.UpToDate}},
	})
	if err != nil {
		return fmt.Errorf("softtee: %w", err)
	}
	qe, err := p.authority.QEIdentity(&dcap.QEIdentity{
		ID: "TD_QE", Version: 2, EvaluationDataNumber: evaluationNumber, IssueDate: from, NextUpdate: next,
		MiscSelectMask: [4]byte{0xff, 0xff, 0xff, 0xff}, Attributes: [16]byte{dcapquote.AttributeInit | dcapquote.AttributeProvisionKey},
		// All but the mode of 64 bits, as in Intel's.
		AttributesMask: [16]byte{0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, MRSigner: qeSigner(), ISVProdID: qeProduct, Levels: level(qeSVN),
	})
	if err != nil {
		return fmt.Errorf("softtee: %w", err)
	}
	none := dcapmint.Revocations{Number: from.Unix(), From: from, Next: next}
	crl, err := p.authority.PCKCRL(dcap.PlatformCA, none)
	if err != nil {
		return fmt.Errorf("softtee: %w", err)
	}
	rootCRL, err := p.authority.RootCRL(none)
	if err != nil {
		return fmt.Errorf("softtee: %w", err)
	}
	p.root, err = dcap.EncodeDevelopmentRoot(p.authority.Root.Certificate, &dcap.Static{
		TCBInfos: map[dcap.Family]dcap.Signed{{Kind: dcap.TDX, FMSPC: fmspc()}: info}, QEIdentities: map[dcap.Kind]dcap.Signed{dcap.TDX: qe},
		PCKCRLs: map[dcap.CA]dcap.Signed{dcap.PlatformCA: crl}, Root: rootCRL,
	})
	if err != nil {
		return fmt.Errorf("softtee: %w", err)
	}
	return nil
}

// loadOrCreatePlatform is LoadOrCreate's part for TDX. State of versions that
// had none gets one. The lock is held.
func loadOrCreatePlatform(dir string, random io.Reader, now time.Time) (*platform, error) {
	path := filepath.Join(dir, platformFile)
	data, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		p, err := newPlatform(random, now)
		if err != nil {
			return nil, err
		}
		return p, p.save(dir)
	}
	var p *platform
	if err == nil {
		p, err = parsePlatform(data)
	}
	if err == nil {
		err = p.check(now)
	}
	if err != nil {
		return nil, fmt.Errorf("softtee: %s: %w", path, err)
	}
	// The file can always be made again.
	if p.root, err = os.ReadFile(filepath.Join(dir, TDXRootFile)); err == nil && p.current(now) {
		return p, nil
	}
	if err := p.signCollateral(now); err != nil {
		return nil, err
	}
	return p, replace(dir, TDXRootFile, p.root)
}

// current tells whether the root's file is good, and for a while.
func (p *platform) current(now time.Time) bool {
	d, err := dcap.ParseDevelopmentRoot("software TEE", p.root)
	if err != nil || d.Collateral == nil || !bytes.Equal(d.PEM, p.authority.RootPEM()) {
		return false
	}
	der, err := d.Collateral.RootCRL(context.Background())
	if err != nil {
		return false
	}
	list, err := x509.ParseRevocationList(der)
	return err == nil && !now.Before(list.ThisUpdate) && now.Add(collateralLife/2).Before(list.NextUpdate)
}

// holders are what the state has keys of, in its order; the key of the quoting
// enclave follows.
func (p *platform) holders() []*dcapmint.Holder {
	a := p.authority
	return []*dcapmint.Holder{&a.Root, &a.Platform, &a.Processor, &a.Signing, &p.machine.PCK}
}

func (p *platform) save(dir string) error {
	var data []byte
	var problems []error
	put := func(kind string, der []byte, err error) {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
		problems = append(problems, err)
	}
	key := func(k *ecdsa.PrivateKey) {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		put("PRIVATE KEY", der, err)
	}
	for _, h := range p.holders() {
		put("CERTIFICATE", h.Certificate.Raw, nil)
		key(h.Key)
	}
	key(p.machine.AttestationKey)
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("softtee: %w", err)
	}
	if err := replace(dir, platformFile, data); err != nil {
		return err
	}
	return replace(dir, TDXRootFile, p.root)
}

func parsePlatform(data []byte) (*platform, error) {
	p := &platform{authority: &dcapmint.Authority{Profile: dcapmint.Profile{Organization: Warning}}, machine: new(dcapmint.Platform)}
	next := func(kind string) ([]byte, error) {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil || b.Type != kind {
			return nil, errors.New("expected five CERTIFICATE blocks, each with a PRIVATE KEY block behind it, and a PRIVATE KEY block; remove the file to make a new platform")
		}
		return b.Bytes, nil
	}
	key := func() (*ecdsa.PrivateKey, error) {
		der, err := next("PRIVATE KEY")
		if err != nil {
			return nil, err
		}
		k, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return nil, err
		}
		ec, ok := k.(*ecdsa.PrivateKey)
		if !ok || ec.Curve != elliptic.P256() {
			return nil, fmt.Errorf("expected an EC P-256 key, got %T", k)
		}
		return ec, nil
	}
	for _, h := range p.holders() {
		der, err := next("CERTIFICATE")
		if err != nil {
			return nil, err
		}
		if h.Certificate, err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
		if h.Key, err = key(); err != nil {
			return nil, err
		}
	}
	var err error
	if p.machine.AttestationKey, err = key(); err != nil {
		return nil, err
	}
	if p.machine.Chain, err = p.authority.PCKChain(p.machine.PCK.Certificate, dcap.PlatformCA); err != nil {
		return nil, err
	}
	return p, p.machine.Certify(quotingEnclave())
}

// check says what is wrong with a platform that was read from a file.
func (p *platform) check(now time.Time) error {
	root := p.authority.Root.Certificate
	for _, h := range p.holders() {
		issuer := root
		if h == &p.machine.PCK {
			issuer = p.authority.Platform.Certificate
		}
		c := h.Certificate
		switch {
		case c.CheckSignatureFrom(issuer) != nil:
			return errors.New("the certificates are not those of one platform")
		case !h.Key.PublicKey.Equal(c.PublicKey):
			return fmt.Errorf("the key behind the certificate %q is not its own", c.Subject.CommonName)
		case now.Before(c.NotBefore):
			return fmt.Errorf("the platform's certificates are not valid before %s; set the clock", c.NotBefore.Format(time.RFC3339))
		case now.After(c.NotAfter):
			return fmt.Errorf("the platform's certificates have expired on %s; remove the file to make a new platform, and configure its root", c.NotAfter.Format(time.RFC3339))
		}
	}
	pck, err := dcapquote.ParsePCK(p.machine.PCK.Certificate)
	if err == nil && pck.FMSPC != fmspc() {
		err = fmt.Errorf("PCK certificate: FMSPC: expected %x, got %x", fmspc(), pck.FMSPC)
	}
	return err
}

// TDXRootPEM returns the root of the simulated TDX platform with its collateral,
// in the form of [dcap.ParseDevelopmentRoot]: what a verifier is configured with
// as development root. The collateral is good for half a year at least.
func (p *Processor) TDXRootPEM() []byte { return bytes.Clone(p.intel.root) }

// TDXFingerprint is the SHA-256 of that root certificate in lower-case hex.
func (p *Processor) TDXFingerprint() string {
	sum := sha256.Sum256(p.intel.authority.Root.Certificate.Raw)
	return hex.EncodeToString(sum[:])
}
