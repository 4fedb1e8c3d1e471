package collateraltest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"time"

	"github.com/coffer-project/coffer/tee/internal/pemchain"
	"github.com/coffer-project/coffer/tee/snp"
)

// rsaBits is less than AMD's 4096, which take seconds to make.
const rsaBits = 2048

// amdAuthority is AMD: a root and an intermediate for each generation.
type amdAuthority struct {
	rootKey, intermediateKey *rsa.PrivateKey
	start                    time.Time
	generations              map[snp.Generation]*amdGeneration
	chips                    map[string]*chip
}

type amdGeneration struct{ ark, ask, asvk *x509.Certificate }

type chip struct {
	der []byte
	key *ecdsa.PrivateKey
}

func newAMD(now time.Time) (*amdAuthority, error) {
	a := &amdAuthority{start: now.Add(-time.Hour).UTC().Truncate(time.Second), generations: map[snp.Generation]*amdGeneration{}, chips: map[string]*chip{}}
	var err error
	if a.rootKey, err = rsa.GenerateKey(rand.Reader, rsaBits); err != nil {
		return nil, err
	}
	if a.intermediateKey, err = rsa.GenerateKey(rand.Reader, rsaBits); err != nil {
		return nil, err
	}
	for g, product := range map[snp.Generation]string{snp.Milan: "Milan", snp.Genoa: "Genoa", snp.Turin: "Turin"} {
		ca := x509.Certificate{
			SignatureAlgorithm: x509.SHA384WithRSAPSS, NotBefore: a.start, NotAfter: a.start.AddDate(25, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
		made := &amdGeneration{}
		root, ask, asvk := ca, ca, ca
		root.Subject, ask.Subject, asvk.Subject = amdName("ARK-"+product), amdName("SEV-"+product), amdName("SEV-VLEK-"+product)
		if made.ark, err = issue(&root, &root, &a.rootKey.PublicKey, a.rootKey); err == nil {
			if made.ask, err = issue(&ask, made.ark, &a.intermediateKey.PublicKey, a.rootKey); err == nil {
				made.asvk, err = issue(&asvk, made.ark, &a.intermediateKey.PublicKey, a.rootKey)
			}
		}
		if err != nil {
			return nil, err
		}
		a.generations[g] = made
	}
	return a, nil
}

func (a *amdAuthority) fork() *amdAuthority {
	b := *a
	b.chips = maps.Clone(a.chips)
	return &b
}

// amdName is a name as AMD's certificates have it, with a warning.
func amdName(common string) pkix.Name {
	return pkix.Name{
		OrganizationalUnit: []string{"Engineering"}, Country: []string{"US"}, Locality: []string{"Santa Clara"},
		Province: []string{"CA"}, Organization: []string{"Advanced Micro Devices"}, CommonName: common, SerialNumber: "TEST",
	}
}

func issue(template, issuer *x509.Certificate, public, key any) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// vcek returns the certificate and key of a chip; the same one each time.
func (a *amdAuthority) vcek(g snp.Generation, id []byte, tcb snp.TCB) ([]byte, *ecdsa.PrivateKey, error) {
	gen := a.generations[g]
	if gen == nil || len(id) != 64 && len(id) != 8 {
		return nil, nil, errors.New("no such chip")
	}
	name := fmt.Sprintf("%s %x %s", g, id, tcb)
	if c := a.chips[name]; c != nil {
		return c.der, c.key, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	leaf := x509.Certificate{
		SignatureAlgorithm: x509.SHA384WithRSAPSS, NotBefore: a.start, NotAfter: a.start.AddDate(7, 0, 0),
		Subject: amdName("SEV-VCEK"), ExtraExtensions: amdExtensions(g, id, tcb),
	}
	cert, err := issue(&leaf, gen.ask, &key.PublicKey, a.intermediateKey)
	if err != nil {
		return nil, nil, err
	}
	a.chips[name] = &chip{cert.Raw, key}
	return cert.Raw, key, nil
}

// amdArc is where AMD's extensions are (publication 57230, §3.1).
func amdArc(tail ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, tail...)
}

func amdExtensions(g snp.Generation, id []byte, tcb snp.TCB) []pkix.Extension {
	number := func(n uint8) []byte {
		b, _ := asn1.Marshal(int(n)) // an int always encodes
		return b
	}
	product, _ := asn1.MarshalWithParams(string(g)+"-B1", "ia5") // ASCII always encodes
	out := []pkix.Extension{
		{Id: amdArc(1), Value: number(0)}, {Id: amdArc(2), Value: product},
		{Id: amdArc(3, 1), Value: number(tcb.Bootloader)}, {Id: amdArc(3, 2), Value: number(tcb.TEE)}, {Id: amdArc(3, 3), Value: number(tcb.SNP)},
		{Id: amdArc(3, 4), Value: number(0)}, {Id: amdArc(3, 5), Value: number(0)}, {Id: amdArc(3, 6), Value: number(0)}, {Id: amdArc(3, 7), Value: number(0)},
		{Id: amdArc(3, 8), Value: number(tcb.Microcode)},
		{Id: amdArc(4), Value: id},
	}
	if tcb.FMC != nil {
		out = append(out, pkix.Extension{Id: amdArc(3, 9), Value: number(*tcb.FMC)})
	}
	return out
}

func (a *amdAuthority) chain(g snp.Generation, s snp.Signer) ([]byte, error) {
	gen := a.generations[g]
	if gen == nil {
		return nil, found(false)
	}
	first := gen.ask
	if s == snp.SignerVLEK {
		first = gen.asvk
	}
	return append(certPEM(first), certPEM(gen.ark)...), nil
}

func (a *amdAuthority) crl(g snp.Generation, d dates) ([]byte, error) {
	gen := a.generations[g]
	if gen == nil {
		return nil, found(false)
	}
	return x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		SignatureAlgorithm: x509.SHA384WithRSAPSS, Number: big.NewInt(d.from.Unix()), ThisUpdate: d.from, NextUpdate: d.to,
	}, gen.ark, a.rootKey)
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// checkVCEK is the check of a verifier that trusts this authority.
func (a *amdAuthority) checkVCEK(der []byte, g snp.Generation, id []byte, tcb snp.TCB) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	gen := a.generations[g]
	if gen == nil {
		return fmt.Errorf("unknown generation %q", string(g))
	}
	if err := c.CheckSignatureFrom(gen.ask); err != nil {
		return err
	}
	for _, want := range amdExtensions(g, id, tcb) {
		for _, got := range c.Extensions {
			if got.Id.Equal(want.Id) && !bytes.Equal(got.Value, want.Value) {
				return fmt.Errorf("extension %s: expected %x, got %x", want.Id, want.Value, got.Value)
			}
		}
	}
	return nil
}

func (a *amdAuthority) checkCRL(der []byte, g snp.Generation, _ snp.Signer) (*x509.RevocationList, error) {
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	gen := a.generations[g]
	if gen == nil {
		return nil, fmt.Errorf("unknown generation %q", string(g))
	}
	return l, l.CheckSignatureFrom(gen.ark)
}

func (a *amdAuthority) checkChain(chain []byte, g snp.Generation, s snp.Signer) error {
	want, err := a.chain(g, s)
	if err != nil {
		return err
	}
	got, err := pemchain.Split(chain)
	if err != nil {
		return err
	}
	known, err := pemchain.Split(want)
	if err != nil {
		return err
	}
	if len(got) != 2 || !bytes.Equal(got[0], known[0]) || !bytes.Equal(got[1], known[1]) {
		return errors.New("not this authority's chain")
	}
	return nil
}
