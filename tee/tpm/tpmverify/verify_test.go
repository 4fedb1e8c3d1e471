package tpmverify_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/tpm"
	"github.com/coffer-project/coffer/tee/tpm/tpmverify"
)

// vectorNonce is what the published quote carries.
const vectorNonce = "a04182b506878d4f29b91ee606a71a0d3361ccf1b22db20c98adcaa537bea393ef0e41a18b3569ab678f1497fbc5c120"

func vector(t testing.TB) json.RawMessage {
	t.Helper()
	raw, err := os.ReadFile("../testdata/evidence.json")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	out, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func verifier(t testing.TB, o tpmverify.Options) *tpmverify.Verifier {
	t.Helper()
	v, err := tpmverify.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func evidence(t testing.TB) *tpm.Evidence {
	t.Helper()
	e, err := tpm.ParseEvidence(vector(t))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestVector(t *testing.T) {
	t.Parallel()
	v, want := verifier(t, tpmverify.Options{}), tee.Expected{ReportData: unhex(t, vectorNonce)}
	got, err := v.Verify(t.Context(), vector(t), want)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]any{
		"pcr00": strings.Repeat("0", 64), "pcr17": strings.Repeat("f", 64), "pcr23": strings.Repeat("0", 64),
		"init_data": strings.Repeat("0", 64), "report_data": vectorNonce + strings.Repeat("0", 32), "ak_trusted": false, "ak_certified": false,
		"signature_scheme": "RSASSA-SHA256", "clock": uint64(0x720e6e2b), "clock_safe": true, "reset_count": uint32(2), "restart_count": uint32(0),
		"firmware_version": "2019102300163636", "qualified_signer": "000b3081a4cbbe307f3de1456f9875a3c2632528a70d91fcf578ccf092465e4e8e09",
	} {
		if got.Claims[name] != value {
			t.Errorf("%s: expected %v, got %v", name, value, got.Claims[name])
		}
	}
	if s, _ := got.Claims["ak_public"].(string); !strings.HasPrefix(s, "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAtmS6twmGpeO2i8Jp") {
		t.Errorf("ak_public: %q", s)
	}
	if len(got.InitData) != 32 || len(got.ReportData) != 64 || got.Class != tee.CPU || got.TEE != tee.TPM || got.Simulated {
		t.Errorf("result: %+v", got)
	}
	if _, err := json.Marshal(got.Claims); err != nil {
		t.Error(err)
	}
	trusting := verifier(t, tpmverify.Options{TrustedAKs: [][]byte{evidence(t).AKPublic}})
	if got, err := trusting.Verify(t.Context(), vector(t), want); err != nil || got.Claims["ak_trusted"] != true {
		t.Errorf("with the key trusted: %v", err)
	}
	if got, err := v.Verify(t.Context(), vector(t), tee.Expected{AnyReportData: true}); err != nil || len(got.Warnings) != 1 {
		t.Errorf("without report data: %v", err)
	}
}

// refused returns the checks that failed, and fails the test where none did.
func refused(t testing.TB, v tee.Verifier, raw json.RawMessage, want tee.Expected) []string {
	t.Helper()
	r, err := v.Verify(context.Background(), raw, want)
	e, ok := errors.AsType[*tee.Error](err)
	if !ok || r != nil {
		t.Fatalf("expected *tee.Error, got %v", err)
	}
	var out []string
	for _, f := range e.Failures {
		if f.Field == "" || f.Check == "" || f.Expected+f.Got == "" {
			t.Errorf("a failure that says too little: %+v", f)
		}
		out = append(out, f.Check)
	}
	return out
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	want := tee.Expected{ReportData: unhex(t, vectorNonce)}
	zeros := make([]byte, 256)
	for name, c := range map[string]struct {
		options tpmverify.Options
		change  func(*tpm.Evidence)
		want    tee.Expected
		checks  []string
	}{
		"other nonce":          {want: tee.Expected{ReportData: make([]byte, 48)}, checks: []string{"tpm.report_data"}},
		"no nonce":             {want: tee.Expected{}, checks: []string{"tpm.report_data"}},
		"init data not bound":  {want: tee.Expected{ReportData: want.ReportData, InitData: make([]byte, 32)}, checks: []string{"tpm.init_data"}},
		"long init data":       {want: tee.Expected{ReportData: want.ReportData, InitData: make([]byte, 48)}, checks: []string{"tpm.init_data"}},
		"empty init data":      {want: tee.Expected{ReportData: want.ReportData, InitData: []byte{}}, checks: []string{"tpm.init_data"}},
		"key not trusted":      {options: tpmverify.Options{TrustedAKs: [][]byte{}}, want: want, checks: []string{"tpm.ak"}},
		"no key certified":     {options: tpmverify.Options{AKRoots: [][]byte{}}, want: want, checks: []string{"tpm.ak"}},
		"register changed":     {change: func(e *tpm.Evidence) { e.Quote.PCRs[11][0] = 1 }, want: want, checks: []string{"tpm.pcr_digest"}},
		"zero signature":       {change: func(e *tpm.Evidence) { e.Quote.Signature = append(e.Quote.Signature[:6:6], zeros...) }, want: want, checks: []string{"tpm.signature"}},
		"short signature":      {change: func(e *tpm.Evidence) { e.Quote.Signature = append([]byte{0, 0x14, 0, 0xB, 0, 1}, 1) }, want: want, checks: []string{"tpm.signature"}},
		"PSS instead":          {change: func(e *tpm.Evidence) { e.Quote.Signature[1] = 0x16 }, want: want, checks: []string{"tpm.signature"}},
		"SHA-1 signature":      {change: func(e *tpm.Evidence) { e.Quote.Signature[3] = 4 }, want: want, checks: []string{"tpm.signature"}},
		"SHA-512 signature":    {change: func(e *tpm.Evidence) { e.Quote.Signature[3] = 0xD }, want: want, checks: []string{"tpm.signature", "tpm.pcr_digest"}},
		"no magic":             {change: func(e *tpm.Evidence) { e.Quote.Message[0] = 0 }, want: want, checks: []string{"tpm.signature", "tpm.quote"}},
		"everything":           {change: func(e *tpm.Evidence) { e.Quote.Message[50] ^= 1; e.Quote.PCRs[0][0] = 1 }, want: want, checks: []string{"tpm.signature", "tpm.pcr_digest", "tpm.report_data"}},
		"ECDSA with RSA key":   {change: func(e *tpm.Evidence) { e.Quote.Signature = []byte{0, 0x18, 0, 0xB, 0, 1, 1, 0, 1, 1} }, want: want, checks: []string{"tpm.signature"}},
		"unknown scheme":       {change: func(e *tpm.Evidence) { e.Quote.Signature[1] = 5 }, want: want, checks: []string{"tpm.format"}},
		"no key":               {change: func(e *tpm.Evidence) { e.AKPublic = []byte{1} }, want: want, checks: []string{"tpm.format"}},
		"key with more behind": {change: func(e *tpm.Evidence) { e.AKPublic = append(e.AKPublic, 0) }, want: want, checks: []string{"tpm.format"}},
	} {
		e := evidence(t)
		if c.change != nil {
			c.change(e)
		}
		raw, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if got := refused(t, verifier(t, c.options), raw, c.want); !slices.Equal(got, c.checks) {
			t.Errorf("%s: expected %v, got %v", name, c.checks, got)
		}
	}
	if got := refused(t, verifier(t, tpmverify.Options{}), json.RawMessage(`{}`), want); !slices.Equal(got, []string{"tpm.format"}) {
		t.Errorf("no evidence: %v", got)
	}
	if _, err := tpmverify.New(tpmverify.Options{TrustedAKs: [][]byte{{1}}}); err == nil {
		t.Error("what is no key was taken as trusted")
	}
	if _, err := tpmverify.New(tpmverify.Options{AKRoots: [][]byte{{1}}}); err == nil {
		t.Error("what is no certificate was taken as a root")
	}
	if _, err := tpmverify.New(tpmverify.Options{RequiredPCRs: 1 << 24}); err == nil {
		t.Error("register 24 was required")
	}
}

// TestEachBit flips every bit of the published evidence.
func TestEachBit(t *testing.T) {
	t.Parallel()
	v, want := verifier(t, tpmverify.Options{}), tee.Expected{ReportData: unhex(t, vectorNonce)}
	teetest.EachBit(t, "evidence JSON", vector(t), func(m []byte) bool {
		// White space may change into other white space.
		if bytes.Equal(bytes.Join(bytes.Fields(m), nil), bytes.Join(bytes.Fields(vector(t)), nil)) && !bytes.Equal(m, vector(t)) {
			return false
		}
		_, err := v.Verify(context.Background(), m, want)
		return err == nil
	})
}

// signer makes quotes that no TPM made, to reach what one would not do.
type signer struct {
	key    crypto.Signer
	scheme tpm.Alg
	hash   tpm.Alg
}

func (s signer) evidence(t testing.TB, change func(*tpm.Attest)) json.RawMessage {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	e := &tpm.Evidence{AKPublic: spki}
	h := map[tpm.Alg]crypto.Hash{tpm.AlgSHA1: crypto.SHA1, tpm.AlgSHA256: crypto.SHA256, tpm.AlgSHA384: crypto.SHA384, tpm.AlgSHA512: crypto.SHA512}[s.hash]
	sum := h.New()
	for i := range e.Quote.PCRs {
		sum.Write(e.Quote.PCRs[i][:])
	}
	a := &tpm.Attest{ExtraData: nonce(), Safe: true, PCRDigest: sum.Sum(nil), Selections: []tpm.Selection{{Bank: tpm.AlgSHA256, Bitmap: []byte{0xFF, 0xFF, 0xFF}}}}
	if change != nil {
		change(a)
	}
	e.Quote.Message = a.Bytes()
	sum = h.New()
	sum.Write(e.Quote.Message)
	digest := sum.Sum(nil)
	sig := tpm.Signature{Scheme: s.scheme, Hash: s.hash}
	var opts crypto.SignerOpts = h
	if s.scheme == tpm.AlgRSAPSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	raw, err := s.key.Sign(rand.Reader, digest, opts)
	if err != nil {
		t.Fatal(err)
	}
	if s.scheme == tpm.AlgECDSA {
		var v struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		sig.R, sig.S = v.R.Bytes(), v.S.Bytes()
	} else {
		sig.RSA = raw
	}
	e.Quote.Signature = sig.Bytes()
	out, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func nonce() []byte { return bytes.Repeat([]byte{0xAB}, 32) }

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func TestSchemes(t *testing.T) {
	t.Parallel()
	key, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // that it is too small is what is tested
	if err != nil {
		t.Fatal(err)
	}
	v, want := verifier(t, tpmverify.Options{}), tee.Expected{ReportData: nonce()}
	for name, c := range map[string]struct {
		signer signer
		check  string
	}{
		"RSASSA-SHA256": {signer{key, tpm.AlgRSASSA, tpm.AlgSHA256}, ""},
		"RSASSA-SHA384": {signer{key, tpm.AlgRSASSA, tpm.AlgSHA384}, ""},
		"RSAPSS-SHA256": {signer{key, tpm.AlgRSAPSS, tpm.AlgSHA256}, ""},
		"P-256":         {signer{ecKey(t, elliptic.P256()), tpm.AlgECDSA, tpm.AlgSHA256}, ""},
		"P-384":         {signer{ecKey(t, elliptic.P384()), tpm.AlgECDSA, tpm.AlgSHA384}, ""},
		"SHA-1":         {signer{key, tpm.AlgRSASSA, tpm.AlgSHA1}, "tpm.signature"},
		"1024 bits":     {signer{small, tpm.AlgRSASSA, tpm.AlgSHA256}, "tpm.key"},
		"P-521":         {signer{ecKey(t, elliptic.P521()), tpm.AlgECDSA, tpm.AlgSHA512}, "tpm.key"},
		"P-224":         {signer{ecKey(t, elliptic.P224()), tpm.AlgECDSA, tpm.AlgSHA256}, "tpm.key"},
	} {
		raw := c.signer.evidence(t, nil)
		if c.check == "" {
			if _, err := v.Verify(t.Context(), raw, want); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if got := refused(t, v, raw, want); !slices.Contains(got, c.check) {
			t.Errorf("%s: expected %s, got %v", name, c.check, got)
		}
	}
}

// TestECDSANumbers: numbers out of range, which signatures must not have.
func TestECDSANumbers(t *testing.T) {
	t.Parallel()
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		good, err := tpm.ParseEvidence(signer{ecKey(t, curve), tpm.AlgECDSA, tpm.AlgSHA256}.evidence(t, nil))
		if err != nil {
			t.Fatal(err)
		}
		sig, err := tpm.ParseSignature(good.Quote.Signature)
		if err != nil {
			t.Fatal(err)
		}
		n := curve.Params().N
		plus := func(b []byte) []byte { return new(big.Int).Add(new(big.Int).SetBytes(b), n).Bytes() }
		for name, s := range map[string]tpm.Signature{
			"zeros": {}, "no s": {R: sig.R}, "no r": {S: sig.S}, "r is n": {R: n.Bytes(), S: sig.S}, "s is n": {R: sig.R, S: n.Bytes()},
			"r+n": {R: plus(sig.R), S: sig.S}, "s+n": {R: sig.R, S: plus(sig.S)}, "swapped": {R: sig.S, S: sig.R}, "ones": {R: bytes.Repeat([]byte{0xFF}, 66), S: bytes.Repeat([]byte{0xFF}, 66)},
		} {
			s.Scheme, s.Hash = sig.Scheme, sig.Hash
			e := *good
			e.Quote.Signature = s.Bytes()
			raw, err := e.JSON()
			if err != nil {
				t.Fatal(err)
			}
			if got := refused(t, verifier(t, tpmverify.Options{}), raw, tee.Expected{ReportData: nonce()}); !slices.Equal(got, []string{"tpm.signature"}) {
				t.Errorf("%s, %s: %v", curve.Params().Name, name, got)
			}
		}
	}
}

func TestSelections(t *testing.T) {
	t.Parallel()
	s := signer{ecKey(t, elliptic.P256()), tpm.AlgECDSA, tpm.AlgSHA256}
	all := tpm.Selection{Bank: tpm.AlgSHA256, Bitmap: []byte{0xFF, 0xFF, 0xFF}}
	for name, selections := range map[string][]tpm.Selection{
		"none": nil, "SHA-1": {{Bank: tpm.AlgSHA1, Bitmap: all.Bitmap}}, "two banks": {all, {Bank: tpm.AlgSHA384, Bitmap: all.Bitmap}}, "twice": {all, all},
		"one missing": {{Bank: tpm.AlgSHA256, Bitmap: []byte{0xFF, 0xFE, 0xFF}}}, "short": {{Bank: tpm.AlgSHA256, Bitmap: []byte{0xFF, 0xFF}}},
		"register 24": {{Bank: tpm.AlgSHA256, Bitmap: []byte{0xFF, 0xFF, 0xFF, 1}}},
	} {
		raw := s.evidence(t, func(a *tpm.Attest) { a.Selections = selections })
		if got := refused(t, verifier(t, tpmverify.Options{}), raw, tee.Expected{ReportData: nonce()}); !slices.Contains(got, "tpm.pcr_selection") {
			t.Errorf("%s: %v", name, got)
		}
	}
	// Registers 0 to 7 only, where that is enough.
	sum := sha256.Sum256(make([]byte, 8*32))
	raw := s.evidence(t, func(a *tpm.Attest) {
		a.Selections, a.PCRDigest = []tpm.Selection{{Bank: tpm.AlgSHA256, Bitmap: []byte{0xFF, 0, 0}}}, sum[:]
	})
	v := verifier(t, tpmverify.Options{RequiredPCRs: 0xFF})
	got, err := v.Verify(t.Context(), raw, tee.Expected{ReportData: nonce()})
	if err != nil {
		t.Fatal(err)
	}
	if got.Claims["pcr07"] == nil || got.Claims["pcr08"] != nil || got.Claims["init_data"] != nil || got.InitData != nil {
		t.Errorf("claims of registers that were not quoted: %v", got.Claims)
	}
	if got := refused(t, v, raw, tee.Expected{ReportData: nonce(), InitData: make([]byte, 32)}); !slices.Equal(got, []string{"tpm.init_data"}) {
		t.Errorf("init data in a register that was not quoted: %v", got)
	}
	for _, n := range []int{0, 31, 33, 48, 63} {
		raw := s.evidence(t, func(a *tpm.Attest) { a.ExtraData = make([]byte, n) })
		if got := refused(t, verifier(t, tpmverify.Options{}), raw, tee.Expected{AnyReportData: true}); !slices.Equal(got, []string{"tpm.report_data"}) {
			t.Errorf("nonce of %d bytes: %v", n, got)
		}
	}
}

// directoryName is GeneralNames with one directoryName, as TPM makers write it.
func FuzzVerify(f *testing.F) {
	f.Add([]byte(vector(f)))
	v := verifier(f, tpmverify.Options{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := v.Verify(t.Context(), raw, tee.Expected{ReportData: []byte("another nonce")})
		if err == nil || r != nil {
			t.Errorf("accepted: %+v", r)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	v, raw, want := verifier(b, tpmverify.Options{}), vector(b), tee.Expected{ReportData: unhex(b, vectorNonce)}
	for b.Loop() {
		if _, err := v.Verify(b.Context(), raw, want); err != nil {
			b.Fatal(err)
		}
	}
}
