package snpverify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/snp"
)

// genuine returns a function that says whether a report verifies with a
// certificate. The binding follows the report, so that only signatures tell.
// Whatever else the verifier says has to be a judgement.
func genuine(t *testing.T, v *Verifier, kind snp.CertType) func(report, der []byte) bool {
	return func(report, der []byte) bool {
		e, err := snp.NewEvidence(report, []snp.Certificate{{Type: kind, Data: der}})
		if err != nil {
			return false // has no JSON form
		}
		data, err := e.JSON()
		if err != nil {
			t.Error(err)
			return false
		}
		_, err = v.Verify(t.Context(), data, tee.Expected{ReportData: report[0x50:0x90], InitData: report[0xC0:0xE0]})
		// With another signer in key_info, the certificate is missing.
		_, refusal := errors.AsType[*tee.Error](err)
		if _, missing := errors.AsType[*tee.UnavailableError](err); err != nil && !refusal && !missing {
			t.Errorf("got %v, want a refusal", err)
		}
		return err == nil
	}
}

// No bit of a report, of its signature or of the certificate can change.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	r, authority, cert, key := turin(t)
	minted, err := r.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	signRaw(t, minted, key)
	for _, tc := range []struct {
		name        string
		report, der []byte
		kind        snp.CertType
		options     Options
	}{
		{"Milan VCEK", vector(t, "test-report.bin"), vector(t, "test-vcek.der"), snp.CertVCEK, Options{Now: at("2024-06-01")}},
		{"Milan VLEK", vector(t, "test-vlek-report.bin"), vector(t, "test-vlek.der"), snp.CertVLEK, Options{Now: at("2025-02-01"), VMPL: []uint32{1}}},
		{"Turin VCEK", vector(t, "turin-report.bin"), vector(t, "turin-vcek.der"), snp.CertVCEK, Options{Now: at("2025-12-01")}},
		{"Turin, with mitigation vectors", minted, cert.Raw, snp.CertVCEK, Options{Now: at("2026-02-01"), DevelopmentRoots: []DevelopmentRoot{authority.root()}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			check := genuine(t, newVerifier(t, tc.options), tc.kind)
			teetest.EachBit(t, "report", tc.report, func(report []byte) bool { return check(report, tc.der) })
			teetest.EachBit(t, "certificate", tc.der, func(der []byte) bool { return check(tc.report, der) })
			teetest.EachPrefix(tc.der, func(der []byte) {
				if check(tc.report, der) {
					t.Errorf("genuine with %d bytes of the certificate", len(der))
				}
			})
			for name, der := range map[string][]byte{"padded": append(slices.Clone(tc.der), 0), "twice": slices.Concat(tc.der, tc.der)} {
				if check(tc.report, der) {
					t.Errorf("genuine with the certificate %s", name)
				}
			}
		})
	}
}

// The evidence's own issuers decide nothing, but they cannot be forged either.
func TestAttachedIssuers(t *testing.T) {
	t.Parallel()
	milan, err := loadAMD(snp.Milan)
	if err != nil {
		t.Fatal(err)
	}
	genoa, err := loadAMD(snp.Genoa)
	if err != nil {
		t.Fatal(err)
	}
	report := vector(t, "test-report.bin")
	leaf := vector(t, "test-vcek.der")
	asPEM := func(ders ...[]byte) (text []byte) {
		for _, der := range ders {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		return text
	}
	changed := slices.Clone(milan.ask.Raw)
	changed[len(changed)-1] ^= 1
	entry := func(kind snp.CertType, data []byte) snp.Certificate { return snp.Certificate{Type: kind, Data: data} }
	vcek := entry(snp.CertVCEK, leaf)
	for name, tc := range map[string]struct {
		certs []snp.Certificate
		want  []string
	}{
		"AMD's":                      {[]snp.Certificate{vcek, entry(snp.CertASK, milan.ask.Raw), entry(snp.CertARK, milan.ark.Raw)}, nil},
		"in front":                   {[]snp.Certificate{entry(snp.CertARK, milan.ark.Raw), vcek}, nil},
		"as PEM":                     {[]snp.Certificate{entry(snp.CertVCEK, asPEM(leaf)), entry(snp.CertASK, asPEM(milan.ask.Raw, milan.ark.Raw))}, nil},
		"the VLEKs'":                 {[]snp.Certificate{vcek, entry(snp.CertASK, milan.asvk.Raw)}, nil},
		"another generation's":       {[]snp.Certificate{vcek, entry(snp.CertARK, genoa.ark.Raw)}, nil},
		"a VLEK beside":              {[]snp.Certificate{vcek, entry(snp.CertVLEK, vector(t, "test-vlek.der"))}, nil},
		"a changed ASK":              {[]snp.Certificate{vcek, entry(snp.CertASK, changed)}, []string{"snp.chain"}},
		"a changed ASK, a loop":      {[]snp.Certificate{vcek, entry(snp.CertASK, leaf), entry(snp.CertARK, leaf)}, []string{"snp.chain", "snp.chain"}},
		"an empty ARK":               {[]snp.Certificate{vcek, entry(snp.CertARK, nil)}, []string{"snp.chain"}},
		"broken PEM":                 {[]snp.Certificate{vcek, entry(snp.CertARK, []byte("-----BEGIN CERTIFICATE-----\n"))}, []string{"snp.chain"}},
		"two VCEKs":                  {[]snp.Certificate{vcek, vcek}, []string{"snp.certificate"}},
		"two VCEKs in PEM":           {[]snp.Certificate{entry(snp.CertVCEK, asPEM(leaf, leaf))}, []string{"snp.certificate"}},
		"broken PEM for VCEK":        {[]snp.Certificate{entry(snp.CertVCEK, asPEM(leaf)[:400])}, []string{"snp.certificate"}},
		"an empty VCEK":              {[]snp.Certificate{entry(snp.CertVCEK, nil)}, []string{"snp.certificate"}},
		"the ASK in the VCEK's role": {[]snp.Certificate{entry(snp.CertVCEK, milan.ask.Raw)}, []string{"snp.certificate"}},
	} {
		v := newVerifier(t, Options{Now: at("2024-06-01")})
		_, err := v.Verify(t.Context(), evidenceOf(t, report, tc.certs...), tee.Expected{ReportData: report[0x50:0x90]})
		if diff := cmp.Diff(tc.want, failed(t, err)); diff != "" {
			t.Errorf("%s: %s\n%v", name, diff, err)
		}
	}
}

// Signatures that are out of range, or are none.
func TestForgedSignatures(t *testing.T) {
	t.Parallel()
	report, der := vector(t, "test-report.bin"), vector(t, "test-vcek.der")
	check := genuine(t, newVerifier(t, Options{Now: at("2024-06-01")}), snp.CertVCEK)
	n := elliptic.P384().Params().N
	littleR, littleS := report[snp.SignedSize:snp.SignedSize+72], report[snp.SignedSize+72:snp.SignedSize+144]
	number := func(b []byte) *big.Int {
		b = slices.Clone(b)
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	r, s := number(littleR), number(littleS)
	with := func(r, s *big.Int) []byte {
		out := slices.Clone(report)
		for i, n := range []*big.Int{r, s} {
			b := n.FillBytes(make([]byte, 72))
			slices.Reverse(b)
			copy(out[snp.SignedSize+72*i:], b)
		}
		return out
	}
	if !check(with(r, s), der) {
		t.Fatal("refused as it is")
	}
	add := func(a, b *big.Int) *big.Int { return new(big.Int).Add(a, b) }
	for name, changed := range map[string][]byte{
		"zeros":      with(new(big.Int), new(big.Int)),
		"r zero":     with(new(big.Int), s),
		"s zero":     with(r, new(big.Int)),
		"r plus n":   with(add(r, n), s),
		"s plus n":   with(r, add(s, n)),
		"r is n":     with(n, s),
		"s is n":     with(r, n),
		"swapped":    with(s, r),
		"big-endian": slices.Concat(report[:snp.SignedSize], r.FillBytes(make([]byte, 72)), s.FillBytes(make([]byte, 72)), report[snp.SignedSize+144:]),
		"72 bytes":   with(new(big.Int).Lsh(big.NewInt(1), 575), s),
	} {
		if check(changed, der) {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Certificates that the right issuer signed, but not as AMD does.
func TestForgedCertificates(t *testing.T) {
	t.Parallel()
	r, authority, cert, key := turin(t)
	v := newVerifier(t, Options{Now: at("2026-02-01"), DevelopmentRoots: []DevelopmentRoot{authority.root()}})
	extensions := turinExtensions(t, r.ReportedTCB, r.ChipID[:8])
	small, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := func(change func(*x509.Certificate)) *x509.Certificate {
		out := &x509.Certificate{
			SerialNumber: big.NewInt(3), Subject: amdName("SEV-VCEK"), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
			SignatureAlgorithm: x509.SHA384WithRSAPSS, ExtraExtensions: extensions,
		}
		change(out)
		return out
	}
	offCurve := bytes.Clone(cert.Raw)
	point := elliptic.Marshal(elliptic.P384(), key.X, key.Y) //nolint:staticcheck // the bytes as they are in the certificate
	at := bytes.Index(offCurve, point)
	if at < 0 {
		t.Fatal("the key is not in the certificate")
	}
	offCurve[at+len(point)-1] ^= 1
	issue := func(change func(*x509.Certificate), issuer *x509.Certificate, public any, by *rsa.PrivateKey) []byte {
		parent := *issuer
		parent.PublicKey = &by.PublicKey // a stranger takes the issuer's name
		c, err := sign(template(change), &parent, public, by)
		if err != nil {
			t.Fatal(err)
		}
		return c.Raw
	}
	same := func(*x509.Certificate) {}
	for name, tc := range map[string]struct {
		der  []byte
		want []string
	}{
		"as it is":  {issue(same, authority.ask, &key.PublicKey, authority.key), nil},
		"SHA-256":   {issue(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSAPSS }, authority.ask, &key.PublicKey, authority.key), []string{"snp.certificate"}},
		"PKCS #1":   {issue(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA384WithRSA }, authority.ask, &key.PublicKey, authority.key), []string{"snp.certificate"}},
		"P-256 key": {issue(same, authority.ask, &small.PublicKey, authority.key), []string{"snp.certificate"}},
		"RSA key":   {issue(same, authority.ask, &stranger.PublicKey, authority.key), []string{"snp.certificate"}},
		"a CA":      {issue(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, authority.ask, &key.PublicKey, authority.key), []string{"snp.certificate"}},
		"critical": {issue(func(c *x509.Certificate) {
			c.ExtraExtensions = slices.Clone(extensions)
			c.ExtraExtensions[0].Critical = true
		}, authority.ask, &key.PublicKey, authority.key), []string{"snp.certificate"}},
		"stranger's key":    {issue(same, authority.ask, &key.PublicKey, stranger), []string{"snp.chain"}},
		"the root's":        {issue(same, authority.ark, &key.PublicKey, authority.key), []string{"snp.chain"}},
		"the VLEKs' issuer": {issue(same, authority.asvk, &key.PublicKey, authority.key), []string{"snp.chain"}},
		"off the curve":     {offCurve, []string{"snp.certificate"}},
	} {
		_, err := v.Verify(t.Context(), signReport(t, r, key, snp.Certificate{Type: snp.CertVCEK, Data: tc.der}), tee.Expected{ReportData: []byte("bound")})
		if diff := cmp.Diff(tc.want, failed(t, err)); diff != "" {
			t.Errorf("%s: %s\n%v", name, diff, err)
		}
	}
}

// Documents that are not evidence.
func TestBrokenDocuments(t *testing.T) {
	t.Parallel()
	data := vector(t, "genoa-evidence.json")
	e, err := snp.ParseEvidence(data)
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(t, Options{Now: at("2026-01-01")})
	check := func(name string, document []byte) {
		t.Helper()
		_, err := v.Verify(t.Context(), document, tee.Expected{ReportData: e.AttestationReport.ReportData[:]})
		if diff := cmp.Diff([]string{"snp.format"}, failed(t, err)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	text := strings.TrimSpace(string(data))
	teetest.EachPrefix([]byte(text), func(cut []byte) { check("cut", cut) })
	for name, document := range map[string]string{
		"twice":         text + text,
		"duplicate key": strings.Replace(text, `"vmpl":0`, `"vmpl":0,"vmpl":0`, 1),
		"nested":        strings.Repeat("[", 10000) + strings.Repeat("]", 10000),
		"over-long":     text + strings.Repeat(" ", snp.MaxEvidence),
		"negative":      strings.Replace(text, `"vmpl":0`, `"vmpl":-1`, 1),
		"huge":          strings.Replace(text, `"vmpl":0`, `"vmpl":1e99`, 1),
		"null":          `null`,
		"raw":           string(vector(t, "test-report.bin")),
	} {
		check(name, []byte(document))
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, data, "", "  "); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), indented.Bytes(), tee.Expected{ReportData: e.AttestationReport.ReportData[:]}); err != nil {
		t.Errorf("white space: %v", err)
	}
}

// Issuers that issue each other lead nowhere, in finite time.
func TestIssuersInACircle(t *testing.T) {
	t.Parallel()
	r, authority, cert, key := turin(t)
	round, err := sign(&x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: amdName("ARK-Milan"), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
		SignatureAlgorithm: x509.SHA384WithRSAPSS, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, authority.ask, &authority.key.PublicKey, authority.key)
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(t, Options{Now: at("2026-02-01")})
	data := signReport(t, r, key, snp.Certificate{Type: snp.CertVCEK, Data: cert.Raw},
		snp.Certificate{Type: snp.CertASK, Data: authority.ask.Raw}, snp.Certificate{Type: snp.CertARK, Data: round.Raw})
	_, err = v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("bound")})
	if diff := cmp.Diff([]string{"snp.chain"}, failed(t, err)); diff != "" {
		t.Errorf("%s\n%v", diff, err)
	}
}
