package collateral_test

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/collateral/collateraltest"
	"github.com/coffer-project/coffer/tee/snp"
)

// filled is a directory with an item of every kind.
func filled(t testing.TB, s *collateraltest.Server) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "cache")
	c := newClient(t, s, func(o *collateral.Options) { o.Dir = dir })
	for _, i := range everything(t) {
		if _, err := c.Get(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	cert, issuer := s.Device()
	if _, err := c.NVIDIA().OCSP(t.Context(), cert, issuer); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t testing.TB, name string, checks collateral.Checks) *collateral.Files {
	t.Helper()
	f, err := collateral.Open(name, checks)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func bundle(t testing.TB, entries []*collateral.Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := collateral.WriteBundle(&b, entries); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// A directory goes through a bundle and comes out the same, byte for byte.
func TestBundle(t *testing.T) {
	s := newServer(t)
	dir := filled(t, s)
	files := open(t, dir, s.Checks())
	if n := len(files.Entries()); n != len(everything(t))+1 {
		t.Fatalf("%d entries, findings %+v", n, files.Findings())
	}
	data := bundle(t, files.Entries())
	file := write(t, t.TempDir(), "bundle.tar", data)
	other := filepath.Join(t.TempDir(), "other")
	findings, err := collateral.Import(other, file, s.Checks())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.Status != collateral.Accepted {
			t.Errorf("%+v", f)
		}
	}
	a, b := tree(t, dir), tree(t, other)
	if strings.Join(a, "\n") != strings.Join(b, "\n") {
		t.Fatalf("expected %q, got %q", a, b)
	}
	for _, name := range a {
		x, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.ReadFile(filepath.Join(other, name))
		if err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s differs: %v", name, err)
		}
	}
	if again := bundle(t, open(t, other, s.Checks()).Entries()); !bytes.Equal(data, again) {
		t.Error("two bundles of the same items differ")
	}
	private(t, other)
}

// Import checks everything, and keeps what is newer.
func TestImportChecks(t *testing.T) {
	s := newServer(t)
	stranger := s.Checks()
	fresh, err := collateraltest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	fresh.SetRIM(rimID, []byte("<SoftwareIdentity/>"))
	file := write(t, t.TempDir(), "bundle.tar", bundle(t, open(t, filled(t, s), s.Checks()).Entries()))
	dir := t.TempDir()
	findings, err := collateral.Import(dir, file, fresh.Checks())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		self := f.Item.Kind == collateral.RIM || f.Item.Kind == collateral.OCSP // no root of their own in this test
		if (f.Status == collateral.Accepted) != self || f.Status == collateral.Refused && f.Reason == "" {
			t.Errorf("under other roots: %+v", f)
		}
	}

	// A later revocation list is not replaced by an earlier one.
	later := s.Fork(func() time.Time { return time.Now().Add(48 * time.Hour) })
	dir = t.TempDir()
	if _, err := newClient(t, later, func(o *collateral.Options) { o.Dir = dir }).Get(t.Context(), collateral.RootCRLItem()); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "intel/crl/sgx.json"))
	if err != nil {
		t.Fatal(err)
	}
	findings, err = collateral.Import(dir, file, stranger)
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for _, f := range findings {
		if f.Status == collateral.Kept && *f.Item == collateral.RootCRLItem() {
			kept++
		}
	}
	after, err := os.ReadFile(filepath.Join(dir, "intel/crl/sgx.json"))
	if err != nil || kept != 1 || !bytes.Equal(before, after) {
		t.Errorf("kept %d, %v", kept, err)
	}
}

// loose writes files as somebody has them, with names that say nothing.
func loose(t testing.TB, s *collateraltest.Server) string {
	t.Helper()
	dir := t.TempDir()
	c := newClient(t, s, nil)
	body := func(i collateral.Item, err error) *collateral.Entry {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		e, err := c.Get(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	vcek := body(collateral.VCEKItem(snp.Milan, chipID(1), tcb()))
	write(t, dir, "a", vcek.Body)
	turin := body(everything(t)[1], nil)
	write(t, dir, "b/turin.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: turin.Body}))
	ask, ark := chainParts(t, body(collateral.AMDItem(collateral.AMDChain, snp.Milan, snp.SignerVCEK)).Body)
	asvk, _ := chainParts(t, body(collateral.AMDItem(collateral.AMDChain, snp.Milan, snp.SignerVLEK)).Body)
	write(t, dir, "milan_ask_ark_asvk.pem", append(append(ask, ark...), asvk...))
	write(t, dir, "c", body(collateral.AMDItem(collateral.AMDCRL, snp.Milan, snp.SignerVCEK)).Body)
	tcbInfo := body(collateral.TCBInfoItem("tdx", [6]byte{0, 0xA0, 0x6D, 8}, collateral.Standard))
	write(t, dir, "tcbInfo.json", append(tcbInfo.Body, '\n'))
	write(t, dir, "enclaveIdentity.json", body(collateral.QEIdentityItem("tdx", collateral.Standard)).Body)
	write(t, dir, "sgx.txt", body(collateral.QEIdentityItem("sgx", collateral.Standard)).Body)
	write(t, dir, "chain.pem", tcbInfo.Chain)
	platform := body(collateral.PCKCRLItem("platform"))
	write(t, dir, "platform.crl", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: platform.Body}))
	write(t, dir, "platform.pem", platform.Chain)
	write(t, dir, "root.hex", []byte(hex.EncodeToString(body(collateral.RootCRLItem(), nil).Body)+"\n"))
	write(t, dir, rimID+".xml", body(collateral.RIMItem(rimID)).Body)
	write(t, dir, "KPA64911240507/hsk_cek.cert", body(collateral.HSKCEKItem("KPA64911240507")).Body)
	return dir
}

func chainParts(t testing.TB, chain []byte) (first, second []byte) {
	t.Helper()
	block, rest := pem.Decode(chain)
	if block == nil {
		t.Fatal("no PEM")
	}
	return pem.EncodeToMemory(block), rest
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestLooseFiles(t *testing.T) {
	s := newServer(t)
	dir := loose(t, s)
	junk := map[string][]byte{
		"notes.txt": []byte("remember the milk"), "empty": nil, "page.html": []byte("<!DOCTYPE html><html></html>"), "other.json": []byte(`{"a":1}`),
		"broken.json": []byte(`{"tcbInfo":`), "both.json": []byte(`{"tcbInfo":{"id":"TDX","fmspc":"00A06D080000"},"enclaveIdentity":{"id":"QE"}}`),
		"qve.json": []byte(`{"enclaveIdentity":{"id":"QVE"}}`), "manifest.xml": []byte(`<SoftwareIdentity/>`), "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"}),
		"vcek/x.der.json": []byte(`{"version":1,"item":"intel-root-crl:sgx","sha256":""}`),
	}
	for name, data := range junk {
		write(t, dir, name, data)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	// A mounted ConfigMap.
	write(t, dir, "..2026_11_22/again.json", read(t, filepath.Join(dir, "tcbInfo.json")))
	for link, to := range map[string]string{"..data": "..2026_11_22", "again.json": "..data/again.json"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	forged := []byte(`{"tcbInfo":{"id":"SGX","fmspc":"00A06D080000","issueDate":"2026-01-01T00:00:00Z","nextUpdate":"2036-01-01T00:00:00Z"},"signature":"` + strings.Repeat("00", 64) + `"}`)
	write(t, dir, "forged.json", forged)
	files := open(t, dir, s.Checks())
	counts := map[collateral.Status]int{}
	for _, f := range files.Findings() {
		counts[f.Status]++
		if _, isJunk := junk[f.File]; (isJunk || f.File == "link") != (f.Status == collateral.Ignored) || f.Status == collateral.Ignored && f.Reason == "" {
			t.Errorf("%+v", f)
		}
		if (f.File == "forged.json") != (f.Status == collateral.Refused) {
			t.Errorf("%+v", f)
		}
	}
	if counts[collateral.Issuers] != 2 || counts[collateral.Accepted] != 15 {
		t.Errorf("%v: %+v", counts, files.Findings())
	}
	c := newClient(t, s, func(o *collateral.Options) {
		o.Offline, o.Stores, o.Update = true, []collateral.Source{files}, collateral.Early
	})
	for _, i := range everything(t) {
		_, err := c.Get(t.Context(), i)
		here := !strings.Contains(i.ID, "Genoa") && i.ID != "Turin/vlek" && i.ID != "processor" && !strings.HasPrefix(i.ID, "sgx/00a0")
		if (err == nil) != here {
			t.Errorf("%s: %v", i, err)
		}
	}
}

// The two forms in which other tools keep collateral of quotes.
func TestOtherTools(t *testing.T) {
	s := newServer(t)
	c := newClient(t, s, nil)
	get := func(i collateral.Item, err error) *collateral.Entry {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		e, err := c.Get(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	tcbInfo := get(collateral.TCBInfoItem("tdx", [6]byte{0, 0xA0, 0x6D, 8}, collateral.Standard))
	identity := get(collateral.QEIdentityItem("tdx", collateral.Standard))
	crl, root := get(collateral.PCKCRLItem("platform")), get(collateral.RootCRLItem(), nil)

	escape := func(chain []byte) string { return url.PathEscape(string(chain)) }
	tool, err := json.MarshalIndent(map[string]any{"platforms": []any{}, "collaterals": map[string]any{
		"version":      "4.1",
		"tcbinfos":     []any{map[string]any{"fmspc": "00a06d080000", "tdx_tcbinfo": json.RawMessage(tcbInfo.Body)}},
		"pckcacrl":     map[string]string{"platformCrl": hex.EncodeToString(crl.Body)},
		"tdqeidentity": json.RawMessage(identity.Body), "rootcacrl": hex.EncodeToString(root.Body),
		"certificates": map[string]any{
			"TCB-Info-Issuer-Chain": escape(tcbInfo.Chain), "SGX-Enclave-Identity-Issuer-Chain": escape(identity.Chain),
			"SGX-PCK-Certificate-Issuer-Chain": map[string]string{"PLATFORM": escape(crl.Chain)},
		},
	}}, "", "    ")
	if err != nil {
		t.Fatal(err)
	}
	inner := func(body []byte, name string) (text, signature string) {
		var v map[string]json.RawMessage
		if err := json.Unmarshal(body, &v); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(v["signature"], &signature); err != nil {
			t.Fatal(err)
		}
		return string(v[name]), signature
	}
	info, infoSignature := inner(tcbInfo.Body, "tcbInfo")
	id, idSignature := inner(identity.Body, "enclaveIdentity")
	quote, err := json.Marshal(map[string]string{
		"tcb_info": info, "tcb_info_signature": infoSignature, "tcb_info_issuer_chain": string(tcbInfo.Chain),
		"qe_identity": id, "qe_identity_signature": idSignature, "qe_identity_issuer_chain": string(identity.Chain),
		"pck_crl": hex.EncodeToString(crl.Body), "pck_crl_issuer_chain": string(crl.Chain), "root_ca_crl": hex.EncodeToString(root.Body),
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"tool": tool, "quote": quote} {
		files := open(t, write(t, t.TempDir(), "x", data), s.Checks())
		if len(files.Entries()) != 4 || len(files.Findings()) != 4 {
			t.Errorf("%s: %+v", name, files.Findings())
		}
	}
}

// Bundles from hostile hands.
func TestHostileBundles(t *testing.T) {
	s := newServer(t)
	pack := func(headers ...*tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(make([]byte, h.Size)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	file := func(name string, size int64) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}
	}
	for name, data := range map[string][]byte{
		"twice": pack(file("a", 1), file("./a", 1)), "cut": pack(file("a", 4096))[:2048],
	} {
		if _, err := collateral.Open(write(t, t.TempDir(), "x.tar", data), s.Checks()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	dir := filepath.Join(t.TempDir(), "in")
	hostile := pack(file("../../escape", 10), file("/etc/absolute", 10), &tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "/etc/passwd"},
		file("large", 17<<20))
	findings, err := collateral.Import(dir, write(t, t.TempDir(), "x.tar", hostile), s.Checks())
	if err != nil || len(findings) != 4 || len(tree(t, dir)) != 0 {
		t.Errorf("%+v, %v", findings, err)
	}
}

// A pipe is refused, and nothing waits for somebody to write into it.
func TestPipe(t *testing.T) {
	s := newServer(t)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := collateral.Open(pipe, s.Checks())
		got <- err
	}()
	select {
	case err := <-got:
		if err == nil || !strings.Contains(err.Error(), "expected a file or a directory") {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits")
	}
}

func TestManyTarEntries(t *testing.T) {
	s := newServer(t)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range 40000 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprint(i), Linkname: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := collateral.Open(write(t, t.TempDir(), "x.tar", b.Bytes()), s.Checks()); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("got %v", err)
	}
}

// Certificates that all call each other their issuers, and documents without: to
// try everything with everything would take hours.
func TestManyIssuers(t *testing.T) {
	s := newServer(t)
	dir := t.TempDir()
	for i := range 120 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		parent := &x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, SerialNumber: big.NewInt(1)}
		c := &x509.Certificate{Subject: pkix.Name{CommonName: "Intel SGX TCB Signing"}, SerialNumber: big.NewInt(int64(i + 1)), NotBefore: time.Unix(1, 0), NotAfter: time.Unix(1<<32, 0)}
		if i%2 == 0 {
			c.Subject.CommonName, c.IsCA, c.BasicConstraintsValid = "CA", true, true
			parent.Subject.CommonName = "Root"
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, fmt.Sprintf("c%d.pem", i), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	infos := []any{}
	for i := range 1000 {
		info := map[string]any{"tcbInfo": map[string]any{"id": "TDX", "fmspc": fmt.Sprintf("%012x", i)}}
		infos = append(infos, map[string]any{"tdx_tcbinfo": info, "tdx_tcbinfo_early": info})
	}
	tool, err := json.Marshal(map[string]any{"collaterals": map[string]any{"tcbinfos": infos}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "tool.json", tool)
	start := time.Now()
	files := open(t, dir, s.Checks())
	if took := time.Since(start); took > 20*time.Second { // it was minutes
		t.Errorf("took %s", took)
	}
	if len(files.Entries()) != 0 {
		t.Errorf("accepted %d", len(files.Entries()))
	}
	said := map[string]bool{}
	for _, f := range files.Findings() {
		for _, part := range []string{"different certificates of issuers", "too many documents"} {
			if strings.Contains(f.Reason, part) {
				said[part] = true
			}
		}
	}
	if len(said) != 2 {
		t.Errorf("findings say %v", said)
	}
}

// lenient are checks that cost nothing and refuse little, so that a fuzzer gets
// behind them.
func lenient() collateral.Checks {
	list := func(der []byte) (*x509.RevocationList, error) { return x509.ParseRevocationList(der) }
	document := func(id string) func(body, chain []byte) (collateral.Document, error) {
		return func(_, chain []byte) (collateral.Document, error) {
			if len(chain) == 0 {
				return collateral.Document{}, errors.New("no issuers")
			}
			return collateral.Document{ID: id, FMSPC: [6]byte{0, 0xA0, 0x6D, 8}, NextUpdate: time.Now()}, nil
		}
	}
	return collateral.Checks{
		VCEK:     func([]byte, snp.Generation, []byte, snp.TCB) error { return nil },
		AMDCRL:   func(der []byte, _ snp.Generation, _ snp.Signer) (*x509.RevocationList, error) { return list(der) },
		AMDChain: func([]byte, snp.Generation, snp.Signer) error { return nil },
		TCBInfo:  document("TDX"), QEIdentity: document("TD_QE"),
		PCKCRL:  func(der, _ []byte, _ string) (*x509.RevocationList, error) { return list(der) },
		RootCRL: list,
		RIM:     func(string, []byte) error { return nil }, HSKCEK: func(string, []byte) error { return nil },
	}
}

func FuzzOpen(f *testing.F) {
	for _, name := range []string{"tcbInfo.json", "enclaveIdentity.json", "test-vcek.der", "milan_ask_ark_asvk.pem", "pckcrl.der", "rootcrl.der"} {
		data, err := os.ReadFile("testdata/pcs/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("x", data)
	}
	f.Add(rimID+".xml", []byte("<SoftwareIdentity/>"))
	f.Add("x", []byte(`{"id":"NV_A","rim":"eA=="}`))
	f.Add("x", bundle(f, open(f, "testdata/pcs", lenient()).Entries()))
	f.Add("x", []byte(`{"collaterals":{"tcbinfos":[{"tdx_tcbinfo":{"tcbInfo":{"id":"TDX","fmspc":"00A06D080000"}}}],"rootcacrl":"3000"}}`))
	f.Add("x", []byte(`{"tcb_info":"{}","qe_identity":"{}"}`))
	f.Add("vcek.der", []byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"))
	checks := lenient()
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		name = strings.Map(func(r rune) rune {
			if r == 0 || r == '/' || r > 126 {
				return 'x'
			}
			return r
		}, name)
		if name == "" || name == "." || name == ".." || len(name) > 100 {
			name = "x"
		}
		file := write(t, dir, name, data)
		defer func() { _ = os.Remove(file) }()
		files, err := collateral.Open(file, checks)
		if err != nil {
			return
		}
		for _, e := range files.Entries() {
			if again, err := collateral.ParseItem(e.Item.String()); err != nil || again != e.Item {
				t.Errorf("%s: %v", e.Item, err)
			}
		}
		if len(files.Findings()) == 0 && !bytes.Contains(data, []byte("ustar")) {
			t.Error("a file was ignored silently")
		}
		for _, finding := range files.Findings() {
			if finding.Status != collateral.Accepted && finding.Reason == "" {
				t.Errorf("no reason: %+v", finding)
			}
		}
		bundle(t, files.Entries())
	})
}

func FuzzParseItem(f *testing.F) {
	for _, i := range everything(f) {
		f.Add(i.String())
	}
	f.Fuzz(func(t *testing.T, s string) {
		i, err := collateral.ParseItem(s)
		if err != nil {
			return
		}
		if i.String() != s || strings.Contains(s, "..") && i.Kind != collateral.RIM {
			t.Errorf("%q is read as %q", s, i)
		}
	})
}
