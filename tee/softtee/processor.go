// Package softtee is a development security processor in software. On the host
// it does what AMD's does for SEV-SNP: it measures what is launched, binds
// HOST_DATA, and signs attestation reports in the real format with a chip key
// that is certified by a root of its own.
//
// It also does what Intel's TDX module and quoting enclave do: MRTD and the
// RTMRs of what is launched, MRCONFIGID, quotes in the real format under a
// hierarchy in the image of Intel's, and the event log of a firmware that
// measured all that.
//
// It protects nothing: whoever runs the host can read the guest's memory and
// the keys in the state directory. Its roots say so in their names, and a
// verifier takes its evidence only where they are configured as development
// roots.
package softtee

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coffer-project/coffer/tee/snp"
)

// Warning is what the subject of every certificate of the chain contains.
const Warning = "DEVELOPMENT, NOT HARDWARE"

// Validity of the certificates, as long as AMD's.
const (
	caYears   = 25
	chipYears = 7
)

// The chip that is simulated: a Milan of stepping B1.
const (
	generation   = snp.Milan
	productName  = "Milan-B1"
	cpuFamily    = 0x19
	cpuModel     = 0x01
	cpuStepping  = 0x01
	rsaKeyBits   = 4096
	chipIDLength = 64
)

// platformTCB is the patch level that the simulated chip reports.
func platformTCB() snp.TCB {
	return snp.TCB{Bootloader: 4, TEE: 0, SNP: 24, Microcode: 219}
}

// Processor is one simulated chip of AMD's with a simulated TDX platform beside
// it. It is safe for concurrent use.
type Processor struct {
	ark, ask, vcek *x509.Certificate
	key            *ecdsa.PrivateKey
	chipID         [chipIDLength]byte
	intel          *platform

	mu   sync.Mutex // guards rand
	rand io.Reader
}

// newProcessor makes a chip and a TDX platform.
func newProcessor(random io.Reader, now time.Time) (*Processor, error) {
	p, err := newChip(random, now)
	if err != nil {
		return nil, err
	}
	p.intel, err = newPlatform(random, now)
	return p, err
}

// newChip makes a chip with its own root. The keys of the root and of the
// intermediate are used once and dropped, so nobody can certify a second chip
// under them.
func newChip(random io.Reader, now time.Time) (*Processor, error) {
	p := &Processor{rand: random}
	if _, err := io.ReadFull(random, p.chipID[:]); err != nil {
		return nil, fmt.Errorf("softtee: chip identifier: %w", err)
	}
	var arkKey, askKey *rsa.PrivateKey
	var keys errgroup.Group
	keys.Go(func() (err error) { arkKey, err = rsa.GenerateKey(rand.Reader, rsaKeyBits); return err })
	keys.Go(func() (err error) { askKey, err = rsa.GenerateKey(rand.Reader, rsaKeyBits); return err })
	keys.Go(func() (err error) { p.key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); return err })
	if err := keys.Wait(); err != nil {
		return nil, fmt.Errorf("softtee: keys: %w", err)
	}

	// A verifier's clock may be a little behind.
	start := now.Add(-time.Hour).UTC().Truncate(time.Second)
	ca := x509.Certificate{
		SignatureAlgorithm: x509.SHA384WithRSAPSS, NotBefore: start, NotAfter: start.AddDate(caYears, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root, intermediate := ca, ca
	root.Subject = pkix.Name{
		Organization:       []string{"Coffer"},
		OrganizationalUnit: []string{Warning},
		CommonName:         "Coffer software TEE root " + hex.EncodeToString(p.chipID[:4]) + " (" + Warning + ")",
	}
	root.KeyUsage |= x509.KeyUsageCRLSign
	intermediate.Subject = vendorName("SEV-" + string(generation))
	intermediate.MaxPathLenZero = true
	leaf := x509.Certificate{
		SignatureAlgorithm: x509.SHA384WithRSAPSS, NotBefore: start, NotAfter: start.AddDate(chipYears, 0, 0),
		Subject: vendorName("SEV-VCEK"), ExtraExtensions: chipExtensions(p.chipID),
	}

	var err error
	if p.ark, err = issue(&root, &root, &arkKey.PublicKey, arkKey); err != nil {
		return nil, err
	}
	if p.ask, err = issue(&intermediate, p.ark, &askKey.PublicKey, arkKey); err != nil {
		return nil, err
	}
	if p.vcek, err = issue(&leaf, p.ask, &p.key.PublicKey, askKey); err != nil {
		return nil, err
	}
	return p, nil
}

// vendorName is a name with the attributes that verifiers of SNP evidence
// demand of the intermediate and of the chip's certificate, and the warning in
// one that they leave alone.
func vendorName(commonName string) pkix.Name {
	return pkix.Name{
		OrganizationalUnit: []string{"Engineering"},
		Country:            []string{"US"},
		Locality:           []string{"Santa Clara"},
		Province:           []string{"CA"},
		Organization:       []string{"Advanced Micro Devices"},
		CommonName:         commonName,
		SerialNumber:       Warning,
	}
}

// chipExtensions are those of AMD's VCEK certificates (publication 57230,
// §3.1): 1.3.6.1.4.1.3704.1.x.
func chipExtensions(chipID [chipIDLength]byte) []pkix.Extension {
	id := func(tail ...int) asn1.ObjectIdentifier {
		return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, tail...)
	}
	number := func(n uint8) []byte {
		b, _ := asn1.Marshal(int(n)) // an int always encodes
		return b
	}
	product, _ := asn1.MarshalWithParams(productName, "ia5") // ASCII always encodes
	tcb := platformTCB()
	return []pkix.Extension{
		{Id: id(1), Value: number(0)},
		{Id: id(2), Value: product},
		{Id: id(3, 1), Value: number(tcb.Bootloader)},
		{Id: id(3, 2), Value: number(tcb.TEE)},
		{Id: id(3, 3), Value: number(tcb.SNP)},
		{Id: id(3, 4), Value: number(0)},
		{Id: id(3, 5), Value: number(0)},
		{Id: id(3, 6), Value: number(0)},
		{Id: id(3, 7), Value: number(0)},
		{Id: id(3, 8), Value: number(tcb.Microcode)},
		// AMD puts the bare bytes here, not an OCTET STRING.
		{Id: id(4), Value: chipID[:]},
	}
}

// issue signs template with the issuer's key.
func issue(template, issuer *x509.Certificate, public any, key *rsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("softtee: serial number: %w", err)
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, key)
	if err != nil {
		return nil, fmt.Errorf("softtee: certificate %q: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// check says what is wrong with a chip that was read from files.
func (p *Processor) check(now time.Time) error {
	switch {
	case p.ark.CheckSignatureFrom(p.ark) != nil || p.ask.CheckSignatureFrom(p.ark) != nil || p.vcek.CheckSignatureFrom(p.ask) != nil:
		return errors.New("the certificates are not a chain")
	case !p.key.PublicKey.Equal(p.vcek.PublicKey):
		return errors.New("the key is not that of the chip's certificate")
	case now.Before(p.vcek.NotBefore):
		return fmt.Errorf("the chip's certificate is not valid before %s; set the clock", p.vcek.NotBefore.Format(time.RFC3339))
	case now.After(p.vcek.NotAfter):
		return fmt.Errorf("the chip's certificate has expired on %s; remove the directory to make a new chip, and configure its root", p.vcek.NotAfter.Format(time.RFC3339))
	}
	for _, e := range p.vcek.Extensions {
		if e.Id.String() == "1.3.6.1.4.1.3704.1.4" && len(e.Value) == chipIDLength {
			p.chipID = [chipIDLength]byte(e.Value)
			return nil
		}
	}
	return errors.New("the chip's certificate has no hardware identifier")
}

// RootPEM returns the intermediate and the root certificate, in this order: the
// form of AMD's cert_chain, and what a verifier is configured with as
// development root.
func (p *Processor) RootPEM() []byte {
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.ask.Raw})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.ark.Raw})...)
}

// Fingerprint is the SHA-256 of the root certificate in lower-case hex.
func (p *Processor) Fingerprint() string {
	sum := sha256.Sum256(p.ark.Raw)
	return hex.EncodeToString(sum[:])
}

// certificates is the table that goes with each report.
func (p *Processor) certificates() []snp.Certificate {
	return []snp.Certificate{
		{Type: snp.CertVCEK, Data: p.vcek.Raw},
		{Type: snp.CertASK, Data: p.ask.Raw},
		{Type: snp.CertARK, Data: p.ark.Raw},
	}
}
