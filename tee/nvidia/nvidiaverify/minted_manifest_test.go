package nvidiaverify

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/beevik/etree"
	dsig "github.com/russellhaering/goxmldsig"
)

// Signer is somebody who signs manifests.
type Signer struct {
	Certs []*x509.Certificate // the root is the last
	Keys  []*ecdsa.PrivateKey
}

// NewSigner returns one below a root; change may alter the template of its
// certificate.
func (a *Authority) NewSigner(t testing.TB, change func(*x509.Certificate)) *Signer {
	t.Helper()
	k := NewKey(t)
	leaf := Template("test RIM signer")
	leaf.IsCA, leaf.KeyUsage, leaf.NotBefore, leaf.NotAfter = false, x509.KeyUsageDigitalSignature, Now().AddDate(-1, 0, 0), Now().AddDate(1, 0, 0)
	if change != nil {
		change(leaf)
	}
	return &Signer{[]*x509.Certificate{Issue(t, leaf, a.Cert, &k.PublicKey, a.Key), a.Cert}, []*ecdsa.PrivateKey{k, a.Key}}
}

const (
	nsSWID   = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
	nsSHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"
	nsDSig   = "http://www.w3.org/2000/09/xmldsig#"
	c14n11   = "http://www.w3.org/2006/12/xml-c14n11"
)

// Manifest signs a manifest whose active measurements are values, by index from 0.
func (s *Signer) Manifest(t testing.TB, product, edition, version string, values map[int][][]byte) []byte {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `<SoftwareIdentity xmlns="%s" xmlns:n="%s" name="x"><Meta product="%s" colloquialVersion="%s" edition="%s" FirmwareManufacturer="NVIDIA Corporation"/><Payload>`,
		nsSWID, nsSHA384, product, version, edition)
	for i := range 64 {
		active := "False"
		if len(values[i]) > 0 {
			active = "True"
		}
		fmt.Fprintf(&b, `<Resource type="Measurement" index="%d" active="%s" alternatives="%d" name="m%d"`, i, active, max(len(values[i]), 1), i)
		for j, v := range values[i] {
			fmt.Fprintf(&b, ` n:Hash%d="%x"`, j, v)
		}
		b.WriteString("/>")
	}
	b.WriteString("</Payload></SoftwareIdentity>")
	return s.sign(t, b.String())
}

// sign makes an enveloped signature as XML Signature 1.1 says, with r and s side
// by side.
func (s *Signer) sign(t testing.TB, doc string) []byte {
	t.Helper()
	d := etree.NewDocument()
	if err := d.ReadFromString(doc); err != nil {
		t.Fatal(err)
	}
	body, err := dsig.MakeC14N11Canonicalizer().Canonicalize(d.Root())
	if err != nil {
		t.Fatal(err)
	}
	h := sha512.Sum384(body)
	info := func(ns string) string {
		return `<ds:SignedInfo` + ns + `><ds:CanonicalizationMethod Algorithm="http://www.w3.org/2001/10/xml-exc-c14n#"></ds:CanonicalizationMethod>` +
			`<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"></ds:SignatureMethod><ds:Reference URI=""><ds:Transforms>` +
			`<ds:Transform Algorithm="` + nsDSig + `enveloped-signature"></ds:Transform><ds:Transform Algorithm="` + c14n11 + `"></ds:Transform></ds:Transforms>` +
			`<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"></ds:DigestMethod><ds:DigestValue>` + base64.StdEncoding.EncodeToString(h[:]) + `</ds:DigestValue></ds:Reference></ds:SignedInfo>`
	}
	signature := Sign(t, s.Keys[0], []byte(info(` xmlns:ds="`+nsDSig+`"`)))
	var certs strings.Builder
	for _, c := range s.Certs {
		certs.WriteString("<ds:X509Certificate>" + base64.StdEncoding.EncodeToString(c.Raw) + "</ds:X509Certificate>")
	}
	out := `<ds:Signature xmlns:ds="` + nsDSig + `">` + info("") + `<ds:SignatureValue>` + base64.StdEncoding.EncodeToString(signature) +
		`</ds:SignatureValue><ds:KeyInfo><ds:X509Data>` + certs.String() + `</ds:X509Data></ds:KeyInfo></ds:Signature>`
	return []byte(strings.TrimSuffix(doc, "</SoftwareIdentity>") + out + "</SoftwareIdentity>")
}
