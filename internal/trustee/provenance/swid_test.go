package provenance

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/beevik/etree"
	dsig "github.com/russellhaering/goxmldsig"

	"github.com/coffer-project/coffer/tee/nvidia/rim"
)

// A manifest that NVIDIA signed verifies under NVIDIA's root.
func TestNVIDIAManifest(t *testing.T) {
	t.Parallel()
	refs, err := Parse(t.Context(), Options{Signers: []Signer{nvidia(t)}, Now: now}, message(SWID, nvidiaRIM(t)))
	if err != nil {
		t.Fatal(err)
	}
	one := byName(t, refs, "NVIDIA_Corporation.GPU.measurement_1")
	if values(one) != `"b558fdac9af53b91ff3bdb06ff589859d6fbc1050d875c88329347f24ff7b3d11ac53688ba56db03cf8751913107e0db"` {
		t.Errorf("measurement 1: %s", values(one))
	}
	if e := one.Entries[0]; !strings.HasPrefix(e.Source, `signer nvidia: swid, GH100 96.00.74.00.1C, certificate "HCC RIM L4 Signer" sha256:`) ||
		e.Description != "GH100 96.00.74.00.1C HashedMeasurement_1_FSP" {
		t.Errorf("source %q, description %q", e.Source, e.Description)
	}
	if n := len(byName(t, refs, "NVIDIA_Corporation.GPU.measurement_12").Entries); n != 4 {
		t.Errorf("measurement 12: %d alternatives, expected 4", n)
	}
	for _, r := range refs {
		if r.Name == "NVIDIA_Corporation.GPU.measurement_7" {
			t.Error("an inactive measurement became a value")
		}
	}
	active := bytes.Count(nvidiaRIM(t), []byte(`active="True"`))
	if len(refs) != active {
		t.Errorf("%d references, expected %d", len(refs), active)
	}
}

func TestNVIDIAManifestRenamed(t *testing.T) {
	t.Parallel()
	s := nvidia(t)
	s.Rename = []Rename{{"NVIDIA_Corporation.GPU.measurement_", "nvidia_gpu_measurement_"}}
	s.Prefixes = []string{"nvidia_gpu_"}
	refs, err := Parse(t.Context(), Options{Signers: []Signer{s}, Now: now}, message(SWID, nvidiaRIM(t)))
	if err != nil {
		t.Fatal(err)
	}
	byName(t, refs, "nvidia_gpu_measurement_1")
}

func TestSWIDRefused(t *testing.T) {
	t.Parallel()
	good := string(nvidiaRIM(t))
	after := func() time.Time { return time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC) }
	before := func() time.Time { return time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC) }
	replace := func(old, with string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the manifest", old)
		}
		return strings.Replace(good, old, with, 1)
	}
	for name, c := range map[string]struct {
		doc       string
		change    func(*Options)
		want      string
		untrusted bool
	}{
		"no signers":        {good, func(o *Options) { o.Signers = nil }, "signed by one of the configured signers", true},
		"another root":      {good, func(o *Options) { o.Signers = []Signer{rootSigner(goodAuthority(t))} }, "unknown authority", true},
		"expired":           {good, func(o *Options) { o.Now = after }, "expired at 2025-12-04", true},
		"not yet valid":     {good, func(o *Options) { o.Now = before }, "not yet valid", true},
		"another subject":   {good, func(o *Options) { o.Signers[0].Subjects = []string{"somebody"} }, "expected the common name somebody", true},
		"another prefix":    {good, func(o *Options) { o.Signers[0].Prefixes = []string{"snp_"} }, "may set references that begin with snp_", true},
		"altered digest":    {replace("b558fdac", "b558fdad"), nil, "is not that of the document", true},
		"altered edition":   {replace(`edition="GPU"`, `edition="CPU"`), nil, "is not that of the document", true},
		"activated":         {replace(`active="False"`, `active="True"`), nil, "is not that of the document", true},
		"altered signature": {replace("<ds:SignatureValue>W", "<ds:SignatureValue>X"), nil, "is not that of the document", true},
		"cut signature":     {replace("WUh3", ""), nil, "SignatureValue: expected 96 bytes", false},
		"signature removed": {good[:strings.Index(good, "<ds:Signature ")] + "</SoftwareIdentity>", nil, "signed by one of the configured signers", true},
		"SHA-1":             {replace("xmldsig-more#sha384", "xmldsig#sha1"), nil, "DigestMethod: expected one of", false},
		"HMAC":              {replace("xmldsig-more#ecdsa-sha384", "xmldsig-more#hmac-sha384"), nil, "SignatureMethod: expected one of", false},
		"XSLT":              {replace(`<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"/></ds:Transforms>`, `<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xslt-19991116"/></ds:Transforms>`), nil, "Transform: expected one of", false},
		"part of it":        {replace(`URI=""`, `URI="#x"`), nil, "whole document", false},
		"document type":     {"<!DOCTYPE x>" + good, nil, "document types are not accepted", false},
		"comment":           {replace("<ns0:Payload", "<!-- x --><ns0:Payload"), nil, "comments are not accepted", false},
		"entity":            {replace("GH100", "&x;"), nil, "XML", false},
		"attribute twice":   {replace(`product="GH100"`, `product="GH100" product="B200"`), nil, "occurs twice", false},
		"two signatures":    {replace("<ds:Signature ", "<ds:Signature/><ds:Signature "), nil, "expected one, directly in the root", false},
		"wrapped":           {`<SoftwareIdentity xmlns="` + rim.Namespace + `"><x>` + good + `</x></SoftwareIdentity>`, nil, "expected one, directly in the root", false},
		"no certificate":    {good[:strings.Index(good, "<ds:KeyInfo>")] + "</ds:Signature></SoftwareIdentity>", nil, "certificate in KeyInfo", false},
		"cut":               {good[:len(good)/2], nil, "XML", false},
		"another element":   {"<x/>", func(o *Options) { o.AllowUnsigned = []string{SWID} }, "expected the element SoftwareIdentity", false},
		"deep":              {strings.Repeat("<x>", 1000) + strings.Repeat("</x>", 1000), nil, "at most 16 levels", false},
		"wide":              {"<x>" + strings.Repeat("<y/>", 8192) + "</x>", nil, "at most 16 levels", false},
		"no XML":            {"{}", nil, "XML", false},
		"empty":             {"", nil, "XML", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := Options{Signers: []Signer{nvidia(t)}, Now: now}
			if c.change != nil {
				c.change(&o)
			}
			refs, err := Parse(t.Context(), o, message(SWID, []byte(c.doc)))
			refused(t, refs, err, c.want, c.untrusted)
		})
	}
}

// Old firmware's manifests are signed with certificates that have expired.
func TestAcceptExpired(t *testing.T) {
	t.Parallel()
	s := nvidia(t)
	s.AcceptExpired = true
	o := Options{Signers: []Signer{s}, Now: func() time.Time { return time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC) }}
	if _, err := Parse(t.Context(), o, message(SWID, nvidiaRIM(t))); err != nil {
		t.Error(err)
	}
	o.Now = func() time.Time { return time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC) }
	refs, err := Parse(t.Context(), o, message(SWID, nvidiaRIM(t)))
	refused(t, refs, err, "not yet valid", true)
}

func TestUnsignedSWID(t *testing.T) {
	t.Parallel()
	o := Options{AllowUnsigned: []string{SWID}, Now: now}
	refs, err := Parse(t.Context(), o, message(SWID, nvidiaRIM(t)))
	if err != nil {
		t.Fatal(err)
	}
	if s := refs[0].Entries[0].Source; s != "unsigned swid, GH100 96.00.74.00.1C" {
		t.Errorf("source %q", s)
	}
	// Where a signature can be verified it must be right, unsigned or not.
	o.Signers = []Signer{nvidia(t)}
	refs, err = Parse(t.Context(), o, message(SWID, bytes.Replace(nvidiaRIM(t), []byte("b558fdac"), []byte("b558fdad"), 1)))
	refused(t, refs, err, "is not that of the document", true)
}

const manifest = `<SoftwareIdentity xmlns="%s" xmlns:n="%s" name="x"><Meta product="T1" colloquialVersion="2" edition="%s" FirmwareManufacturer="%s"/><Payload>%s</Payload></SoftwareIdentity>`

func resource(index, active, alternatives, hashes string) string {
	return fmt.Sprintf(`<Resource type="Measurement" index="%s" active="%s" alternatives="%s" name="m" %s/>`, index, active, alternatives, hashes)
}

func TestSWIDContent(t *testing.T) {
	t.Parallel()
	h := strings.Repeat("ab", 48)
	one := ` n:Hash0="` + h + `"`
	for name, c := range map[string]struct{ edition, manufacturer, payload, want string }{
		"good":              {"GPU", "A B", resource("0", "True", "1", one) + `<Resource type="File" index="x"/>`, ""},
		"upper case":        {"GPU", "A B", resource("0", "True", "1", strings.ToUpper(h[:0])+` n:Hash0="`+strings.ToUpper(h)+`"`), ""},
		"no manufacturer":   {"GPU", "", resource("0", "True", "1", one), "expected FirmwareManufacturer"},
		"no edition":        {"", "A", resource("0", "True", "1", one), "and edition"},
		"no measurement":    {"GPU", "A", "", "got 0"},
		"none active":       {"GPU", "A", resource("0", "False", "1", one), "got 0"},
		"active":            {"GPU", "A", resource("0", "yes", "1", one), "active: expected True or False"},
		"index":             {"GPU", "A", resource("-1", "True", "1", one), "index: expected a number"},
		"index form":        {"GPU", "A", resource("01", "True", "1", one), "index: expected a number"},
		"large index":       {"GPU", "A", resource("256", "True", "1", one), "index: expected a number"},
		"index twice":       {"GPU", "A", resource("1", "True", "1", one) + resource("1", "True", "1", one), "occurs twice"},
		"no alternatives":   {"GPU", "A", resource("1", "True", "0", one), "alternatives: expected at least 1"},
		"many alternatives": {"GPU", "A", resource("1", "True", "65", one), "alternatives: expected a number from 0 to 64"},
		"missing hash":      {"GPU", "A", resource("1", "True", "2", one), "Hash1: expected 48 bytes"},
		"short hash":        {"GPU", "A", resource("1", "True", "1", ` n:Hash0="abab"`), "Hash0: expected 48 bytes"},
		"other namespace":   {"GPU", "A", resource("1", "True", "1", ` Hash0="`+h+`"`), "Hash0: expected 48 bytes"},
		"two prefixes":      {"GPU", "A", resource("1", "True", "1", ` xmlns:p="`+rim.NamespaceSHA384+`" p:Hash0="`+h+`"`+one), "Hash0: expected 48 bytes"},
		"bad name":          {"G\u00e4", "A", resource("1", "True", "1", one), "printable ASCII"},
		"two payloads":      {"GPU", "A", "</Payload><Payload>" + resource("1", "True", "1", one), "Payload: expected one, got several"},
	} {
		doc := fmt.Sprintf(manifest, rim.Namespace, rim.NamespaceSHA384, c.edition, c.manufacturer, c.payload)
		refs, err := Parse(t.Context(), Options{AllowUnsigned: []string{SWID}}, message(SWID, []byte(doc)))
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v, expected %q", name, err, c.want)
			}
			continue
		}
		if err != nil || refs[0].Name != "A_B.GPU.measurement_0" || values(refs[0]) != `"`+h+`"` {
			t.Errorf("%s: got %+v, %v", name, refs, err)
		}
	}
}

// sign makes an enveloped signature as XML Signature 1.1 says, with r and s side
// by side.
func sign(t testing.TB, a *authority, doc string) []byte {
	t.Helper()
	d := etree.NewDocument()
	if err := d.ReadFromString(doc); err != nil {
		t.Fatal(err)
	}
	body, err := dsig.MakeC14N11Canonicalizer().Canonicalize(d.Root())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum384(body)
	info := `<ds:SignedInfo xmlns:ds="http://www.w3.org/2000/09/xmldsig#"><ds:CanonicalizationMethod Algorithm="http://www.w3.org/2001/10/xml-exc-c14n#"></ds:CanonicalizationMethod>` +
		`<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"></ds:SignatureMethod><ds:Reference URI=""><ds:Transforms>` +
		`<ds:Transform Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"></ds:Transform><ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"></ds:Transform></ds:Transforms>` +
		`<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"></ds:DigestMethod><ds:DigestValue>` + base64.StdEncoding.EncodeToString(sum[:]) + `</ds:DigestValue></ds:Reference></ds:SignedInfo>`
	infoSum := sha512.Sum384([]byte(info))
	r, s, err := ecdsa.Sign(rand.Reader, a.key, infoSum[:])
	if err != nil {
		t.Fatal(err)
	}
	raw := append(fixed(r), fixed(s)...)
	sig := `<ds:Signature xmlns:ds="http://www.w3.org/2000/09/xmldsig#">` + strings.Replace(info, ` xmlns:ds="http://www.w3.org/2000/09/xmldsig#"`, "", 1) +
		`<ds:SignatureValue>` + base64.StdEncoding.EncodeToString(raw) + `</ds:SignatureValue><ds:KeyInfo><ds:X509Data><ds:X509Certificate>` +
		base64.StdEncoding.EncodeToString(a.leaf.Raw) + `</ds:X509Certificate></ds:X509Data></ds:KeyInfo></ds:Signature>`
	return []byte(strings.TrimSuffix(doc, "</SoftwareIdentity>") + sig + "</SoftwareIdentity>")
}

func fixed(n *big.Int) []byte { return n.FillBytes(make([]byte, 48)) }

func TestSWIDChains(t *testing.T) {
	t.Parallel()
	doc := fmt.Sprintf(manifest, rim.Namespace, rim.NamespaceSHA384, "GPU", "ACME", resource("3", "True", "1", ` n:Hash0="`+strings.Repeat("cd", 48)+`"`))
	a := goodAuthority(t)
	other := goodAuthority(t)
	// Two signers: the one whose root it is vouches, whatever their order.
	o := Options{Signers: []Signer{rootSigner(other), {Name: "acme", Roots: []*x509.Certificate{a.root}, Prefixes: []string{"ACME."}}}, Now: now}
	refs, err := Parse(t.Context(), o, message(SWID, sign(t, a, doc)))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(refs[0].Entries[0].Source, "signer acme: swid, T1 2, certificate \"test signer\" sha256:") {
		t.Errorf("source %q", refs[0].Entries[0].Source)
	}
	refs, err = Parse(t.Context(), o, message(SWID, sign(t, newAuthority(t, x509.KeyUsageKeyEncipherment, testNow.AddDate(-1, 0, 0), testNow.AddDate(1, 0, 0)), doc)))
	refused(t, refs, err, "is not for signing", true)
	// The certificate of one, the signature of another.
	forged := *a
	forged.key = other.key
	refs, err = Parse(t.Context(), o, message(SWID, sign(t, &forged, doc)))
	refused(t, refs, err, "is not that of the document", true)
}

func FuzzSWID(f *testing.F) {
	f.Add(nvidiaRIM(f))
	f.Add(fmt.Appendf(nil, manifest, rim.Namespace, rim.NamespaceSHA384, "GPU", "A", resource("0", "True", "1", ` n:Hash0="`+strings.Repeat("ab", 48)+`"`)))
	unsigned := Options{AllowUnsigned: []string{SWID}, Now: now}
	signed := Options{Signers: []Signer{nvidia(f)}, Now: now}
	canonical := nvidiaRIM(f)
	want, err := parseSWID(&signed, canonical)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseSWID(&unsigned, data)
		d, err := parseSWID(&signed, data)
		if err != nil || d.by == nil {
			return
		}
		// Whatever else was changed about it, what NVIDIA signed is unchanged.
		if len(d.refs) != len(want.refs) || d.title != want.title {
			t.Errorf("accepted as NVIDIA's: %+v", d)
		}
		for i := range d.refs {
			if d.refs[i].Name != want.refs[i].Name || values(d.refs[i]) != values(want.refs[i]) {
				t.Errorf("accepted as NVIDIA's: %+v", d.refs[i])
			}
		}
	})
}
