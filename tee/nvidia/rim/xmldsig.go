package rim

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"

	"github.com/beevik/etree"
	dsig "github.com/russellhaering/goxmldsig"
)

// Limits of an XML document.
const (
	maxXMLDepth    = 16
	maxXMLElements = 8192
	maxXMLAttrs    = 128
	// maxCertificates bounds how many certificates a document may bring.
	maxCertificates = 8
)

// algorithms are the methods an XML signature may name (RFC 9231, XML Signature
// 1.1). SHA-1 and everything that is not canonical XML is not among them.
func algorithms() map[string][]string {
	return map[string][]string{
		"CanonicalizationMethod": {"http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/2001/10/xml-exc-c14n#", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"},
		"SignatureMethod": {
			"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256", "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384", "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha512",
			"http://www.w3.org/2001/04/xmldsig-more#rsa-sha256", "http://www.w3.org/2001/04/xmldsig-more#rsa-sha384", "http://www.w3.org/2001/04/xmldsig-more#rsa-sha512",
		},
		"DigestMethod": {"http://www.w3.org/2001/04/xmlenc#sha256", "http://www.w3.org/2001/04/xmldsig-more#sha384", "http://www.w3.org/2001/04/xmlenc#sha512"},
		"Transform": {
			"http://www.w3.org/2000/09/xmldsig#enveloped-signature", "http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/2001/10/xml-exc-c14n#",
			"http://www.w3.org/TR/2001/REC-xml-c14n-20010315",
		},
	}
}

// readXML parses a document. With trust it has to have an enveloped signature,
// and what is returned is the root element as it was canonicalised and signed:
// nothing else may be read. Without trust it is the document's.
func readXML(data []byte, trust Trust) (*etree.Element, []*x509.Certificate, error) {
	if err := precheckXML(data); err != nil {
		return nil, nil, err
	}
	doc := etree.NewDocument()
	doc.ReadSettings.MaxDepth = maxXMLDepth
	if err := doc.ReadFromBytes(data); err != nil {
		return nil, nil, fmt.Errorf("XML: %w", err)
	}
	root := doc.Root()
	if root == nil {
		return nil, nil, errors.New("XML: expected an element, got none")
	}
	sig, err := findSignature(root)
	if err != nil {
		return nil, nil, err
	}
	if trust == nil {
		return root, nil, nil
	}
	if sig == nil {
		return nil, nil, ErrUnsigned
	}
	certs, err := xmlCertificates(sig)
	if err != nil {
		return nil, nil, err
	}
	if err := trust(certs); err != nil {
		return nil, nil, err
	}
	if err := toDER(sig, certs[0]); err != nil {
		return nil, nil, err
	}
	ctx := &dsig.ValidationContext{
		CertificateStore: &dsig.MemoryX509CertificateStore{Roots: certs[:1]},
		// The certificate has been judged, as of the time that counts.
		Clock: dsig.NewFakeClockAt(certs[0].NotBefore),
	}
	verified, err := ctx.Validate(root)
	if err != nil {
		return nil, nil, fmt.Errorf("%w (signer %.128q: %w)", ErrSignature, certs[0].Subject.CommonName, err)
	}
	return verified, certs, nil
}

// precheckXML bounds a document before a tree is made of it, and refuses what
// can be read in two ways: document types, processing instructions, comments,
// attributes that occur twice.
func precheckXML(data []byte) error {
	d := xml.NewDecoder(bytes.NewReader(data))
	var open []xml.Name
	elements, roots := 0, 0
	for {
		tok, err := d.RawToken()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("XML: %w", err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if len(open) == 0 {
				roots++
			}
			open = append(open, tok.Name)
			elements++
			if len(open) > maxXMLDepth || elements > maxXMLElements || len(tok.Attr) > maxXMLAttrs {
				return fmt.Errorf("XML: expected at most %d levels, %d elements and %d attributes of one", maxXMLDepth, maxXMLElements, maxXMLAttrs)
			}
			if err := uniqueAttrs(tok); err != nil {
				return err
			}
		case xml.EndElement:
			if len(open) == 0 || open[len(open)-1] != tok.Name {
				return fmt.Errorf("XML: the end of %.80q has no beginning", tok.Name.Local)
			}
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) == 0 && len(bytes.TrimSpace(tok)) > 0 {
				return errors.New("XML: text outside of the root element")
			}
		case xml.Directive:
			return errors.New("XML: document types are not accepted")
		case xml.Comment:
			return errors.New("XML: comments are not accepted")
		case xml.ProcInst:
			if tok.Target != "xml" || elements > 0 {
				return errors.New("XML: processing instructions are not accepted")
			}
		}
	}
	if len(open) != 0 || roots != 1 {
		return fmt.Errorf("XML: expected one whole root element, got %d, with %d elements open at the end", roots, len(open))
	}
	return nil
}

func uniqueAttrs(e xml.StartElement) error {
	seen := make(map[xml.Name]bool, len(e.Attr))
	for _, a := range e.Attr {
		if seen[a.Name] {
			return fmt.Errorf("XML: element %.80q: attribute %.80q occurs twice", e.Name.Local, a.Name.Local)
		}
		seen[a.Name] = true
	}
	return nil
}

// findSignature returns the one signature of a document, nil where there is
// none. It stands directly in the root, covers the whole document and nothing
// else, and names accepted methods only.
func findSignature(root *etree.Element) (*etree.Element, error) {
	var sig *etree.Element
	var references, signatures int
	allowed := algorithms()
	var walk func(e *etree.Element) error
	walk = func(e *etree.Element) error {
		switch e.Tag {
		case "Signature":
			signatures++
			sig = e
		case "Reference":
			references++
			if uri := e.SelectAttr("URI"); uri == nil || uri.Value != "" {
				return errors.New(`XML signature: expected a reference to the whole document (URI="")`)
			}
		}
		if list, ok := allowed[e.Tag]; ok && !slices.Contains(list, e.SelectAttrValue("Algorithm", "")) {
			return fmt.Errorf("XML signature: %s: expected one of %s, got %.120q", e.Tag, strings.Join(list, ", "), e.SelectAttrValue("Algorithm", ""))
		}
		for _, c := range e.ChildElements() {
			if err := walk(c); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk(root); err != nil {
		return nil, err
	}
	switch {
	case signatures == 0 && references == 0:
		return nil, nil
	case signatures != 1 || references != 1 || sig.Parent() != root || sig.NamespaceURI() != dsig.Namespace:
		return nil, fmt.Errorf("XML signature: expected one, directly in the root, with one reference; got %d with %d references", signatures, references)
	}
	return sig, nil
}

func xmlCertificates(sig *etree.Element) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, e := range sig.FindElements("./KeyInfo/X509Data/X509Certificate") {
		if len(out) == maxCertificates {
			return nil, fmt.Errorf("XML signature: expected at most %d certificates", maxCertificates)
		}
		der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(e.Text()), ""))
		if err != nil {
			return nil, fmt.Errorf("XML signature: certificate %d: expected base64: %w", len(out), err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("XML signature: certificate %d: %w", len(out), err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("XML signature: expected the signer's certificate in KeyInfo, got none")
	}
	return out, nil
}

// toDER rewrites an ECDSA signature value from r and s side by side (XML
// Signature 1.1 §6.4.3) to the ASN.1 form that the library expects. The value
// itself is not covered by the signature.
func toDER(sig *etree.Element, cert *x509.Certificate) error {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil
	}
	values := sig.FindElements("./SignatureValue")
	if len(values) != 1 {
		return fmt.Errorf("XML signature: expected one SignatureValue, got %d", len(values))
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(values[0].Text()), ""))
	if err != nil {
		return fmt.Errorf("XML signature: SignatureValue: expected base64: %w", err)
	}
	n := (key.Curve.Params().BitSize + 7) / 8
	if len(raw) != 2*n {
		return fmt.Errorf("XML signature: SignatureValue: expected %d bytes for the certificate's curve, got %d", 2*n, len(raw))
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:n]), new(big.Int).SetBytes(raw[n:])})
	if err != nil {
		return err
	}
	values[0].SetText(base64.StdEncoding.EncodeToString(der))
	return nil
}
