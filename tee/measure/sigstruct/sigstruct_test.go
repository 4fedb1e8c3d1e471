package sigstruct

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/internal/teetest"
)

// newKey is an RSA-3072 key with the exponent 3, as SGX demands.
func newKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	one, three := big.NewInt(1), big.NewInt(3)
	prime := func() *big.Int {
		for {
			p, err := rand.Prime(rand.Reader, 1536)
			if err != nil {
				t.Fatal(err)
			}
			if new(big.Int).Mod(p, three).Cmp(one) != 0 { // 3 has an inverse modulo p−1
				return p
			}
		}
	}
	for {
		p, q := prime(), prime()
		n := new(big.Int).Mul(p, q)
		if n.BitLen() != 3072 || p.Cmp(q) == 0 {
			continue
		}
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		k := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: 3}, D: new(big.Int).ModInverse(three, phi), Primes: []*big.Int{p, q}}
		k.Precompute()
		if err := k.Validate(); err != nil {
			t.Fatal(err)
		}
		return k
	}
}

func put(b []byte, n *big.Int) {
	n.FillBytes(b[:keySize])
	slices.Reverse(b[:keySize])
}

// seal signs raw.
func seal(t testing.TB, raw []byte, k *rsa.PrivateKey) []byte {
	t.Helper()
	put(raw[offModulus:], k.N)
	h := sha256.New()
	h.Write(raw[:offModulus])
	h.Write(raw[offMiscSelect:offReserved4])
	sig, err := rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, h.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(sig)
	q1, q2 := quotients(s, k.N)
	put(raw[offSignature:], s)
	put(raw[offQ1:], q1)
	put(raw[offQ2:], q2)
	return raw
}

// unsigned is an enclave's SIGSTRUCT but for key and signature.
func unsigned() []byte {
	le := binary.LittleEndian
	raw := make([]byte, Size)
	for off, text := range map[int]string{0: "06000000e10000000000010000000000", offHeader2: "01010000600000006000000001000000", offExponent: "03000000"} {
		b, _ := hex.DecodeString(text)
		copy(raw[off:], b)
	}
	le.PutUint32(raw[offDate:], 0x20260901)
	for i := range 32 {
		raw[offEnclaveHash+i] = byte(i)
	}
	copy(raw[offFamilyID:], "family")
	copy(raw[offExtProdID:], "product")
	le.PutUint64(raw[offAttributes:], FlagKSS|4)
	le.PutUint64(raw[offAttributes+8:], 0xe7)
	le.PutUint64(raw[offAttributeMask:], 0xffffffffffffffff)
	le.PutUint64(raw[offAttributeMask+8:], 0xfffffffffffffff8)
	le.PutUint32(raw[offMiscMask:], 0xffffffff)
	le.PutUint16(raw[offProdID:], 0x0102)
	le.PutUint16(raw[offSVN:], 3)
	return raw
}

// sharedKey spares the tests the search for primes.
var sharedKey = sync.OnceValue(func() *rsa.PrivateKey { return newKey(&testing.T{}) })

func TestParse(t *testing.T) {
	t.Parallel()
	k := sharedKey()
	raw := seal(t, unsigned(), k)
	s, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := Sigstruct{
		Date: 0x20260901, ProductID: 0x0102, SVN: 3, Attributes: Attributes{FlagKSS | 4, 0xe7},
		AttributeMask: Attributes{0xffffffffffffffff, 0xfffffffffffffff8}, MiscMask: 0xffffffff,
	}
	copy(want.MRENCLAVE[:], raw[offEnclaveHash:])
	modulus := k.N.FillBytes(make([]byte, keySize))
	slices.Reverse(modulus)
	want.MRSIGNER = sha256.Sum256(modulus)
	copy(want.FamilyID[:], "family")
	copy(want.ExtProductID[:], "product")
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	if s.AllowsDebug() {
		t.Error("allows debugging")
	}
	s.AttributeMask.Flags = 0
	if !s.AllowsDebug() {
		t.Error("without a mask, does not allow debugging")
	}
}

// The signature's quotients are those by which EINIT reconstructs it: with them,
// s³ mod m takes subtractions only.
func TestQuotients(t *testing.T) {
	t.Parallel()
	m, s := big.NewInt(1000003), big.NewInt(987654)
	q1, q2 := quotients(s, m)
	rest := new(big.Int).Mul(s, s)
	rest.Sub(rest, new(big.Int).Mul(q1, m))
	rest.Mul(rest, s)
	rest.Sub(rest, new(big.Int).Mul(q2, m))
	if want := new(big.Int).Exp(s, big.NewInt(3), m); rest.Cmp(want) != 0 {
		t.Errorf("got %v, want %v", rest, want)
	}
}

// No bit can change but those that the processor lets software define.
func TestEachBit(t *testing.T) {
	t.Parallel()
	raw := seal(t, unsigned(), sharedKey())
	for name, part := range map[string][2]int{
		"header": {0, offModulus}, "key": {offModulus, offModulus + 16}, "exponent": {offExponent, offSignature},
		"signature": {offSignature, offSignature + 16}, "body": {offMiscSelect, offQ1}, "q1": {offQ1, offQ1 + 8}, "q2": {Size - 8, Size},
	} {
		teetest.EachBit(t, name, raw[part[0]:part[1]], func(data []byte) bool {
			changed := slices.Clone(raw)
			copy(changed[part[0]:], data)
			_, err := Parse(changed)
			return err == nil
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	for name, tc := range map[string]struct {
		change func(raw []byte) []byte // then signed
		want   string
	}{
		"header":   {func(b []byte) []byte { b[0]++; return b }, "header"},
		"header2":  {func(b []byte) []byte { b[offHeader2]++; return b }, "header2"},
		"vendor":   {func(b []byte) []byte { b[offVendor]++; return b }, "vendor"},
		"date":     {func(b []byte) []byte { le.PutUint32(b[offDate:], 0x20261301); return b }, "date"},
		"no date":  {func(b []byte) []byte { le.PutUint32(b[offDate:], 0x2026090a); return b }, "date"},
		"exponent": {func(b []byte) []byte { b[offExponent] = 5; return b }, "exponent"},
		"reserved": {func(b []byte) []byte { b[offReserved1] = 1; return b }, "reserved"},
		"between":  {func(b []byte) []byte { b[offReserved2] = 1; return b }, "reserved"},
		"behind":   {func(b []byte) []byte { b[offReserved3] = 1; return b }, "reserved"},
		"end":      {func(b []byte) []byte { b[offReserved4] = 1; return b }, "reserved"},
	} {
		raw := seal(t, tc.change(unsigned()), sharedKey())
		if s, err := Parse(raw); err == nil || !strings.Contains(err.Error(), tc.want) || s != (Sigstruct{}) {
			t.Errorf("%s: got %v; want an error with %q", name, err, tc.want)
		}
	}
	for name, tc := range map[string]struct {
		change func(raw []byte) []byte // after it was signed
		want   string
	}{
		"short":          {func(b []byte) []byte { return b[:Size-1] }, "expected 1808 bytes"},
		"long":           {func(b []byte) []byte { return append(b, 0) }, "expected 1808 bytes"},
		"twice":          {func(b []byte) []byte { return append(b, b...) }, "expected 1808 bytes"},
		"no modulus":     {func(b []byte) []byte { clear(b[offModulus:offExponent]); return b }, "modulus"},
		"even modulus":   {func(b []byte) []byte { b[offModulus] &^= 1; return b }, "modulus"},
		"no signature":   {func(b []byte) []byte { clear(b[offSignature:offMiscSelect]); return b }, "signature"},
		"huge signature": {func(b []byte) []byte { copy(b[offSignature:offMiscSelect], b[offModulus:offExponent]); return b }, "signature"},
		"q1":             {func(b []byte) []byte { b[offQ1]++; return b }, "q1"},
		"q2":             {func(b []byte) []byte { b[offQ2]++; return b }, "q2"},
	} {
		if _, err := Parse(tc.change(seal(t, unsigned(), sharedKey()))); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v; want an error with %q", name, err, tc.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(seal(f, unsigned(), sharedKey()))
	f.Add(unsigned())
	f.Add([]byte{6})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s, err := Parse(raw); err != nil && s != (Sigstruct{}) {
			t.Error("both a result and an error")
		}
	})
}
