package severify

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/se"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("../testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func filled(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

func testTime() time.Time { return time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC) }

// TestRequestVector makes the request of s390-tools' tests, byte for byte
// (rust/pv/src/uvattest/arcb.rs, test).
func TestRequestVector(t *testing.T) {
	t.Parallel()
	customer, err := ecdh.P521().NewPrivateKey(read(t, "private_cust.bin")[14:])
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(read(t, "host.pem.crt"))
	document, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	k, err := newHostKey(document, false)
	if err != nil {
		t.Fatal(err)
	}
	r := &request{
		iv: [12]byte(filled(12, 0x55)), customer: customer, protectionKey: [32]byte(filled(32, 0x17)), measurementKey: [64]byte(filled(64, 0x77)),
		nonce: [16]byte(filled(16, 0xAB)), hostKeys: []*hostKey{k},
	}
	got, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	if want := read(t, "arcb.bin"); !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

// published are the certificates of s390-tools' tests.
func published(t testing.TB, change func(o *Options)) Options {
	t.Helper()
	o := Options{
		Now: testTime, Secret: filled(32, 1), HostKeys: [][]byte{read(t, "host.crt")}, Certificates: [][]byte{read(t, "ibm.crt"), read(t, "inter_ca.crt")},
		Roots: [][]byte{read(t, "root_ca.crt")}, CRLs: [][]byte{read(t, "ibm.crl"), read(t, "inter_ca.crl"), read(t, "root_ca.crl")},
	}
	if change != nil {
		change(&o)
	}
	return o
}

// TestPublishedChains runs the cases of s390-tools' tests (rust/pv/tests/cert_verifier.rs
// and rust/pv/src/verify/test.rs).
func TestPublishedChains(t *testing.T) {
	t.Parallel()
	file := func(name string) [][]byte { return [][]byte{read(t, name)} }
	signing := func(name string) func(o *Options) {
		return func(o *Options) { o.Certificates = [][]byte{read(t, name), read(t, "inter_ca.crt")} }
	}
	for name, tc := range map[string]struct {
		change func(o *Options)
		want   string
	}{
		"good":               {nil, ""},
		"Armonk":             {func(o *Options) { signing("ibm_armonk.crt")(o); o.CRLs[0] = read(t, "ibm_armonk.crl") }, ""},
		"Armonk, other list": {signing("ibm_armonk.crt"), ""},
		"Armonk all through": {func(o *Options) {
			signing("ibm_armonk.crt")(o)
			o.CRLs[0] = read(t, "ibm_armonk.crl")
			o.HostKeys = file("host_armonk.crt")
		}, ""},
		"revoked host key":      {func(o *Options) { o.HostKeys = file("host_rev.crt") }, "revoked"},
		"expired host key":      {func(o *Options) { o.HostKeys = file("host_crt_expired.crt") }, "valid from"},
		"early host key":        {func(o *Options) { o.Now = func() time.Time { return time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC) } }, "valid from"},
		"revoked signing key":   {signing("ibm_rev.crt"), "revoked"},
		"expired signing key":   {signing("ibm_expired.crt"), "signing key"},
		"signing key of others": {signing("ibm_wrong_subject.crt"), "got none"},
		"two signing keys":      {func(o *Options) { o.Certificates = append(o.Certificates, read(t, "ibm_armonk.crt")) }, "got two"},
		"no signing key":        {func(o *Options) { o.Certificates = file("inter_ca.crt") }, "got none"},
		"no intermediate":       {func(o *Options) { o.Certificates = file("ibm.crt") }, "signing key"},
		"no root":               {func(o *Options) { o.Roots = nil }, "root"},
		"another root": {func(o *Options) {
			o.Roots = file("inter_ca.crt")
			o.Certificates = file("ibm.crt")
			o.CRLs = o.CRLs[:1]
		}, "no valid revocation list"},
		"forged host key": {func(o *Options) { o.HostKeys = file("fake_host.crt") }, "host-key document"},
		"forged signing key": {func(o *Options) {
			signing("fake_ibm.crt")(o)
			o.HostKeys = file("fake_host.crt")
			o.CRLs[0] = read(t, "fake_ibm.crl")
		}, "signing key"},
		"other signer":         {func(o *Options) { o.HostKeys = file("host_invalid_signing_key.crt") }, "host-key document"},
		"no list of IBM's":     {func(o *Options) { o.CRLs = o.CRLs[1:] }, "no valid revocation list"},
		"no list above":        {func(o *Options) { o.CRLs = o.CRLs[:2] }, "no valid revocation list"},
		"early list":           {func(o *Options) { o.CRLs[0] = read(t, "ibm_outdated_early.crl") }, "no valid revocation list"},
		"forged list":          {func(o *Options) { o.CRLs[0] = read(t, "fake_ibm.crl") }, "no valid revocation list"},
		"certificate for list": {func(o *Options) { o.CRLs[0] = read(t, "ibm.crt") }, "revocation list 0"},
		"same host key twice":  {func(o *Options) { o.HostKeys = append(o.HostKeys, o.HostKeys[0]) }, "once"},
		"RSA host key":         {func(o *Options) { o.HostKeys = file("ibm.crt") }, "P-521"},
		"short secret":         {func(o *Options) { o.Secret = o.Secret[1:] }, "32 bytes"},
		"no host keys":         {func(o *Options) { o.HostKeys = nil }, "1 to 255"},
		"no certificate":       {func(o *Options) { o.HostKeys = [][]byte{[]byte("x")} }, "host-key document"},
	} {
		v, err := New(published(t, tc.change))
		if err == nil {
			_, err = v.Challenge(t.Context())
		}
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: got %v, want an error with %q", name, err, tc.want)
		}
		if _, missing := errors.AsType[*tee.CollateralError](err); missing != (tc.want == "no valid revocation list") {
			t.Errorf("%s: got %T %v", name, err, err)
		}
	}
	lenient := func(o *Options) { o.CRLs, o.AllowMissingCollateral = o.CRLs[1:], true }
	v, err := New(published(t, lenient))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Challenge(t.Context()); err != nil {
		t.Errorf("missing lists allowed: %v", err)
	}
}

// pki is IBM's, as far as these tests are concerned.
type pki struct {
	rootKey, signingKey *ecdsa.PrivateKey
	root, signing       *x509.Certificate
}

func newECDSA(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func certificate(t testing.TB, template, parent *x509.Certificate, public any, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	template.NotBefore, template.NotAfter = testTime().AddDate(-1, 0, 0), testTime().AddDate(1, 0, 0)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ibmName(unit string) pkix.Name {
	const ibm = "International Business Machines Corporation"
	return pkix.Name{Country: []string{"US"}, Province: []string{"New York"}, Locality: []string{"Poughkeepsie"}, Organization: []string{ibm}, OrganizationalUnit: []string{unit}, CommonName: ibm}
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{rootKey: newECDSA(t, elliptic.P384()), signingKey: newECDSA(t, elliptic.P384())}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{1}}
	p.root = certificate(t, root, root, &p.rootKey.PublicKey, p.rootKey)
	signing := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: ibmName("IBM Z Host Key Signing Service"), SubjectKeyId: []byte{2}}
	p.signing = certificate(t, signing, p.root, &p.signingKey.PublicKey, p.rootKey)
	return p
}

// machine returns a machine and its host-key document.
func (p *pki) machine(t testing.TB, serial int64) (*ultravisor, *x509.Certificate) {
	t.Helper()
	k := newECDSA(t, elliptic.P521())
	c := certificate(t, &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: ibmName("IBM Z Host Key")}, p.signing, &k.PublicKey, p.signingKey)
	private, err := k.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	u := &ultravisor{hostKey: private, imageHash: [32]byte(filled(32, 0x1A)), cuid: [16]byte(filled(16, 0xC1))}
	copy(u.tags[:], filled(208, 0x7A))
	return u, c
}

// crl is a list that is valid for a month.
func crl(t testing.TB, issuer *x509.Certificate, by *ecdsa.PrivateKey, revoked ...int64) []byte {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: testTime().AddDate(0, 0, -1), NextUpdate: testTime().AddDate(0, 1, 0)}
	for _, n := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: testTime()})
	}
	able := *issuer // x509 makes lists for authorities only, which the signing key is not
	able.KeyUsage, able.IsCA = x509.KeyUsageCRLSign, true
	der, err := x509.CreateRevocationList(rand.Reader, l, &able, by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (p *pki) options(t testing.TB, documents ...*x509.Certificate) Options {
	t.Helper()
	o := Options{
		Now: testTime, Secret: filled(32, 9), Certificates: [][]byte{p.signing.Raw}, Roots: [][]byte{p.root.Raw},
		CRLs: [][]byte{crl(t, p.root, p.rootKey), crl(t, p.signing, p.signingKey, 99)},
	}
	for _, c := range documents {
		o.HostKeys = append(o.HostKeys, c.Raw)
	}
	return o
}

func newVerifier(t testing.TB, o Options) *Verifier {
	t.Helper()
	v, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func challenge(t testing.TB, v *Verifier) string {
	t.Helper()
	c, err := v.Challenge(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	u1, c1 := p.machine(t, 11)
	u2, c2 := p.machine(t, 12)
	o := p.options(t, c1, c2)
	v, replica := newVerifier(t, o), newVerifier(t, o)
	for _, u := range []*ultravisor{u1, u2} {
		r, err := replica.Verify(t.Context(), asJSON(t, u.answer(t, challenge(t, v), filled(64, 'U'))), tee.Expected{ReportData: filled(64, 'U')})
		if err != nil {
			t.Fatal(err)
		}
		mine := u.hash()
		want := map[string]any{
			"cuid": strings.Repeat("c1", 16), "version": 256, "tag": strings.Repeat("7a", 16), "image_phkh": strings.Repeat("1a", 32), "attestation_phkh": hex.EncodeToString(mine[:]),
			"report_data": strings.Repeat("55", 64), "page_list_digest": strings.Repeat("7a", 64), "address_list_digest": strings.Repeat("7a", 64), "tweak_list_digest": strings.Repeat("7a", 64),
			"simulated": false,
		}
		if diff := cmp.Diff(want, r.Claims); diff != "" {
			t.Error(diff)
		}
		if r.TEE != tee.SE || r.Class != tee.CPU || r.Simulated || r.InitData != nil || !bytes.Equal(r.ReportData, filled(64, 'U')) || len(r.Warnings) != 0 {
			t.Errorf("got %+v", r)
		}
	}
	if a, b := challenge(t, v), challenge(t, v); a == b {
		t.Error("two challenges are the same")
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	u, c := p.machine(t, 11)
	stranger, strange := p.machine(t, 12)
	o := p.options(t, c)
	v := newVerifier(t, o)
	other := o
	other.Secret = filled(32, 8)
	both := o
	both.HostKeys = [][]byte{c.Raw, strange.Raw}
	b64 := base64.StdEncoding.EncodeToString
	answer := func(v *Verifier) map[string]string { return u.answer(t, challenge(t, v), filled(64, 'U')) }
	second := answer(v)
	for name, tc := range map[string]struct {
		evidence map[string]string
		change   func(e map[string]string)
		want     []string
	}{
		"another's report data": {u.answer(t, challenge(t, v), filled(64, 'V')), func(map[string]string) {}, []string{"se.report_data"}},
		"changed report data":   {answer(v), func(e map[string]string) { e["user_data"] = b64(filled(64, 'V')) }, []string{"se.measurement", "se.report_data"}},
		"another image":         {answer(v), func(e map[string]string) { e["image_hdr_tags"] = b64(filled(208, 1)) }, []string{"se.measurement"}},
		"another guest":         {answer(v), func(e map[string]string) { e["cuid"] = b64(filled(16, 1)) }, []string{"se.measurement"}},
		"zero measurement":      {answer(v), func(e map[string]string) { e["measurement"] = b64(filled(64, 0)) }, []string{"se.measurement"}},
		"another measurement":   {answer(v), func(e map[string]string) { e["measurement"] = second["measurement"] }, []string{"se.measurement"}},
		"another key":           {answer(v), func(e map[string]string) { e["encr_measurement_key"] = second["encr_measurement_key"] }, []string{"se.measurement"}},
		"another nonce":         {answer(v), func(e map[string]string) { e["encr_request_nonce"] = second["encr_request_nonce"] }, []string{"se.measurement"}},
		"key as nonce":          {answer(v), func(e map[string]string) { e["encr_request_nonce"] = e["encr_measurement_key"] }, []string{"se.request"}},
		"swapped seals": {answer(v), func(e map[string]string) {
			e["encr_request_nonce"], e["encr_measurement_key"] = e["encr_measurement_key"], e["encr_request_nonce"]
		}, []string{"se.request", "se.request"}},
		"another verifier":  {answer(newVerifier(t, other)), func(map[string]string) {}, []string{"se.request", "se.request"}},
		"unknown machine":   {stranger.answer(t, challenge(t, newVerifier(t, both)), filled(64, 'U')), func(map[string]string) {}, []string{"se.request", "se.request", "se.host_key"}},
		"no hashes":         {answer(v), func(e map[string]string) { e["additional_data"] = "" }, []string{"se.measurement", "se.additional_data"}},
		"one hash":          {answer(v), func(e map[string]string) { e["additional_data"] = b64(filled(32, 1)) }, []string{"se.measurement", "se.additional_data"}},
		"something more":    {answer(v), func(e map[string]string) { e["additional_data"] = b64(filled(65, 1)) }, []string{"se.measurement", "se.additional_data"}},
		"long user data":    {u.answer(t, challenge(t, v), filled(65, 'U')), func(map[string]string) {}, []string{"se.format"}},
		"short measurement": {answer(v), func(e map[string]string) { e["measurement"] = b64(filled(63, 1)) }, []string{"se.format"}},
	} {
		tc.change(tc.evidence)
		r, err := v.Verify(t.Context(), asJSON(t, tc.evidence), tee.Expected{ReportData: filled(64, 'U')})
		if diff := cmp.Diff(tc.want, teetest.Refused(t, err)); r != nil || diff != "" {
			t.Errorf("%s: got %v: %s", name, err, diff)
		}
	}
	// A forger who knows the format, and not the secret.
	aead, err := gcm(filled(32, 3))
	if err != nil {
		t.Fatal(err)
	}
	forged := answer(v)
	forged["encr_measurement_key"] = b64(seal(aead, [12]byte{}, purposeKey, filled(64, 1)))
	_, err = v.Verify(t.Context(), asJSON(t, forged), tee.Expected{ReportData: filled(64, 'U')})
	if diff := cmp.Diff([]string{"se.request"}, teetest.Refused(t, err)); diff != "" {
		t.Error(diff)
	}
}

func TestEachBit(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	u, c := p.machine(t, 11)
	v := newVerifier(t, p.options(t, c))
	ch := challenge(t, v)
	good := u.answer(t, ch, filled(64, 'U'))
	for name, text := range good {
		data, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		teetest.EachBit(t, name, data, func(mutated []byte) bool {
			e := map[string]string{}
			for k, s := range good {
				e[k] = s
			}
			e[name] = base64.StdEncoding.EncodeToString(mutated)
			_, err := v.Verify(t.Context(), asJSON(t, e), tee.Expected{ReportData: filled(64, 'U')})
			return err == nil
		})
	}
	// And of the request, none of which the ultravisor takes.
	var request struct {
		Blob []byte `json:"request_blob"`
	}
	if err := json.Unmarshal([]byte(ch), &request); err != nil {
		t.Fatal(err)
	}
	teetest.EachBit(t, "request", request.Blob, func(mutated []byte) bool {
		_, _, err := u.unpack(mutated)
		return err == nil
	})
}

func TestBinding(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	u, c := p.machine(t, 11)
	v := newVerifier(t, p.options(t, c))
	evidence := asJSON(t, u.answer(t, challenge(t, v), tee.Fit(filled(48, 'U'), 64)))
	if _, err := v.Verify(t.Context(), evidence, tee.Expected{ReportData: filled(48, 'U')}); err != nil {
		t.Error(err)
	}
	if r, err := v.Verify(t.Context(), evidence, tee.Expected{AnyReportData: true}); err != nil || len(r.Warnings) != 1 {
		t.Errorf("any: got %+v, %v", r, err)
	}
	_, err := v.Verify(t.Context(), evidence, tee.Expected{InitData: filled(32, 1)})
	if diff := cmp.Diff([]string{"se.report_data", "se.init_data"}, teetest.Refused(t, err)); diff != "" {
		t.Error(diff)
	}
}

// TestTimePasses has a machine whose documents stop to be good between request
// and evidence, which also is to see that nothing is remembered for too long.
func TestTimePasses(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	u, c := p.machine(t, 11)
	now := testTime()
	o := p.options(t, c)
	o.Now = func() time.Time { return now }
	v := newVerifier(t, o)
	evidence := asJSON(t, u.answer(t, challenge(t, v), filled(64, 'U')))
	want := tee.Expected{ReportData: filled(64, 'U')}
	if _, err := v.Verify(t.Context(), evidence, want); err != nil {
		t.Fatal(err)
	}
	now = testTime().AddDate(0, 2, 0) // the lists are old
	_, err := v.Verify(t.Context(), evidence, want)
	if u, ok := errors.AsType[*tee.UnavailableError](err); !ok || len(u.Failures) != 1 || u.Failures[0].Check != "se.collateral" {
		t.Errorf("stale lists: got %v", err)
	}
	o.AllowMissingCollateral = true
	lenient := newVerifier(t, o)
	if r, err := lenient.Verify(t.Context(), evidence, want); err != nil || len(r.Warnings) != 1 {
		t.Errorf("stale lists allowed: got %+v, %v", r, err)
	}
	now = testTime().AddDate(2, 0, 0) // the document has expired
	_, err = lenient.Verify(t.Context(), evidence, want)
	if diff := cmp.Diff([]string{"se.host_key"}, teetest.Refused(t, err)); diff != "" {
		t.Error(diff)
	}
	// A list that is old still speaks against what it names.
	now = testTime().AddDate(0, 2, 0)
	o.CRLs = append(o.CRLs, crl(t, p.signing, p.signingKey, 11))
	_, err = newVerifier(t, o).Verify(t.Context(), evidence, want)
	if diff := cmp.Diff([]string{"se.host_key"}, teetest.Refused(t, err)); diff != "" {
		t.Error(diff)
	}
}

func TestDevelopmentHostKeys(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	u, c := p.machine(t, 11)
	v := newVerifier(t, Options{Now: testTime, Secret: filled(40, 1), DevelopmentHostKeys: [][]byte{c.Raw}})
	r, err := v.Verify(t.Context(), asJSON(t, u.answer(t, challenge(t, v), filled(64, 'U'))), tee.Expected{ReportData: filled(64, 'U')})
	if err != nil || !r.Simulated || r.Claims["simulated"] != true {
		t.Errorf("got %+v, %v", r, err)
	}
}

// Whoever can unpack a request can answer it in the name of every machine that it
// is for, so that one request is never for real and for emulated machines, and one
// that was for others counts no more.
func TestMachinesShareRequests(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	_, real := p.machine(t, 11)
	emulated, document := p.machine(t, 12)
	o := p.options(t, real)
	o.DevelopmentHostKeys = [][]byte{document.Raw}
	if _, err := New(o); err == nil || !strings.Contains(err.Error(), "development host keys") {
		t.Errorf("development host keys beside others: got %v", err)
	}
	before := newVerifier(t, p.options(t, real, document))
	// The second machine is taken off the list; its owner knows the measurement key.
	v := newVerifier(t, p.options(t, real))
	emulated.posesAs = &v.order[0].hash
	forged := asJSON(t, emulated.answer(t, challenge(t, before), filled(64, 'U')))
	if _, err := before.Verify(t.Context(), forged, tee.Expected{ReportData: filled(64, 'U')}); err != nil {
		t.Fatalf("the forgery is no good: %v", err)
	}
	_, err := v.Verify(t.Context(), forged, tee.Expected{ReportData: filled(64, 'U')})
	if diff := cmp.Diff([]string{"se.request", "se.request"}, teetest.Refused(t, err)); diff != "" {
		t.Errorf("%s%v", diff, err)
	}
}

func TestEnds(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, published(t, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Challenge(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := v.Verify(ctx, nil, tee.Expected{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	o := published(t, nil)
	o.Rand = strings.NewReader("little")
	if _, err := newVerifier(t, o).Challenge(t.Context()); err == nil || !strings.Contains(err.Error(), "randomness") {
		t.Errorf("got %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	e := &se.Evidence{Measurement: filled(64, 1), AdditionalData: filled(64, 2), UserData: filled(64, 3), SealedMeasurementKey: filled(92, 4), SealedNonce: filled(44, 5)}
	data, err := e.JSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(data))
	v := newVerifier(f, published(f, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("none has this")})
		if _, ok := errors.AsType[*tee.Error](err); !ok || r != nil {
			t.Errorf("got %v, %v", r, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	p := newPKI(b)
	u, c := p.machine(b, 11)
	v := newVerifier(b, p.options(b, c))
	evidence := asJSON(b, u.answer(b, challenge(b, v), filled(64, 'U')))
	b.Run("warm", func(b *testing.B) {
		for b.Loop() {
			if _, err := v.Verify(b.Context(), evidence, tee.Expected{AnyReportData: true}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("challenge", func(b *testing.B) {
		for b.Loop() {
			challenge(b, v)
		}
	})
}
