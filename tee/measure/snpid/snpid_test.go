package snpid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/internal/teetest"
)

func digest(t testing.TB, s string) (out [48]byte) {
	t.Helper()
	if n, err := hex.Decode(out[:], []byte(s)); err != nil || n != len(out) {
		t.Fatalf("%q: %d bytes, %v", s, n, err)
	}
	return out
}

func newKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testBlock() Block {
	b := Block{GuestSVN: 7, Policy: 0x30000}
	for i := range b.Measurement {
		b.Measurement[i] = byte(i)
	}
	copy(b.FamilyID[:], "family")
	copy(b.ImageID[:], "image")
	return b
}

// The ID block and the key digests that virtee/sev (commit 9cf2adbf, Apache-2.0)
// publishes in tests/id-block.rs, with the coordinates of its test keys and the
// signatures as they stand in the ID authentication information given there.
func TestPublishedBlock(t *testing.T) {
	t.Parallel()
	b := Block{Policy: 0x30000, Measurement: digest(t, "a14d638341e5674628fe1e02fbedebe5e5ab4faf1dd72d8966068e615bb99efd13d214b35c231715b38e263dc6059745")}
	raw := b.Bytes()
	if got, want := base64.StdEncoding.EncodeToString(raw[:]), "oU1jg0HlZ0Yo/h4C++3r5eWrT68d1y2JZgaOYVu5nv0T0hSzXCMXFbOOJj3GBZdFAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAwAAAAAA"; got != want {
		t.Errorf("block:\n got %s\nwant %s", got, want)
	}
	key := func(x, y string) *ecdsa.PublicKey {
		point, err := hex.DecodeString("04" + x + y)
		if err != nil {
			t.Fatal(err)
		}
		k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), point)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	idKey := key("f6763e4d2609cf1b2cf22f2cc8b8ca4cf55d470c3c23552c93b168874390dd95cb3fdee847ddf79ff29efbb8803c6d1f",
		"ccd7a8d047b9cdc1c750b1190abe6d1dad37a8decb14327b766619f712607cfd0d38853c50da9bcd080b35389c93be3e")
	author := key("6270c78bd6904cd1336299a25b98736a71ce92fef07494d72cb28b073c830f9f564af7a5c1c6ffc5a34973d5da45868c",
		"863c7930a2c98448a77a10088102e2a95f9308cd3e56b559b7fd3acc88b3cc2a19774348fea2f2c9031191e07187acf5")
	for _, tc := range []struct {
		key  *ecdsa.PublicKey
		want string
	}{
		{idKey, "WfssaG36T+9J84M5qndckAUcKNVzg93DuvO160sUlt87DbvcuuX+J2d6ZEggdz/i"},
		{author, "7tgRafsMteDsNHlPEo/U4MSkb2fGWhrfqB/LJLzAiMJyNpt//D6ytq9qQoShs2xf"},
	} {
		got, err := KeyDigest(tc.key)
		if err != nil || base64.StdEncoding.EncodeToString(got[:]) != tc.want {
			t.Errorf("key digest: got %x, %v; want %s", got, err, tc.want)
		}
	}

	// The author's signature over the ID key verifies in the published form.
	number := func(s string) *big.Int {
		n, ok := new(big.Int).SetString(s, 16)
		if !ok {
			t.Fatal(s)
		}
		return n
	}
	var auth [AuthSize]byte
	k, err := PublicKey(idKey)
	if err != nil {
		t.Fatal(err)
	}
	copy(auth[offIDKey:], k[:])
	if k, err = PublicKey(author); err != nil {
		t.Fatal(err)
	}
	copy(auth[offAuthorKey:], k[:])
	putSignature(auth[offIDKeySig:],
		number("99ea62b40e1fa31a776676b94ca371a7ca0e02dd18dc34116529d4ec543d0c8199edf7c35548ff8986567f55947b88bb"),
		number("33916fafbfa2719334e0a3fe7d1b0104b1704ffbb98898e98cd1642f25ee0fbb7da719a2485f42352a1ba75db9e861f2"))
	if err := verify(auth[:], "id key", offIDKeySig, offAuthorKey, auth[offIDKey:offIDKey+keySize]); err != nil {
		t.Error(err)
	}
}

func TestSignVerify(t *testing.T) {
	t.Parallel()
	b := testBlock()
	idKey, author := newKey(t, elliptic.P384()), newKey(t, elliptic.P384())
	for name, sign := range map[string]func() (Signed, error){
		"both keys":   func() (Signed, error) { return Sign(rand.Reader, b, idKey, author) },
		"id key":      func() (Signed, error) { return Sign(rand.Reader, b, idKey, nil) },
		"once":        func() (Signed, error) { return SignOnce(rand.Reader, b) },
		"anonymously": func() (Signed, error) { return SignAnonymously(b) },
	} {
		s, err := sign()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		v, err := Verify(s.Block[:], s.Auth[:])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(Verified{b, s.IDKeyDigest, s.AuthorKeyDigest, s.HasAuthorKey}, v); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		qemu := s.QEMU()
		if strings.Contains(qemu, "author-key-enabled=on") != (name == "both keys") || !strings.HasPrefix(qemu, "id-block="+base64.StdEncoding.EncodeToString(s.Block[:])+",id-auth=") {
			t.Errorf("%s: QEMU: %s", name, qemu)
		}
		switch name {
		case "both keys", "id key":
			if want, err := KeyDigest(&idKey.PublicKey); err != nil || v.IDKeyDigest != want {
				t.Errorf("%s: id key digest: got %x, want %x, %v", name, v.IDKeyDigest, want, err)
			}
		}
	}
}

// Everybody gets the same anonymous block, and another one for another guest.
func TestAnonymousIsDeterministic(t *testing.T) {
	t.Parallel()
	one, err := SignAnonymously(testBlock())
	if err != nil {
		t.Fatal(err)
	}
	two, err := SignAnonymously(testBlock())
	if err != nil || one != two {
		t.Errorf("differs from run to run, %v", err)
	}
	b := testBlock()
	b.Measurement[0]++
	other, err := SignAnonymously(b)
	if err != nil || other.IDKeyDigest == one.IDKeyDigest {
		t.Errorf("another block has the same key, %v", err)
	}
	if _, err := Verify(other.Block[:], one.Auth[:]); err == nil {
		t.Error("one guest's authentication verifies for another")
	}
	// Frozen: the digest that owners register must not change.
	if got, want := hex.EncodeToString(one.IDKeyDigest[:]), "e9676703cc13165d5308fca40fef49ff40910453660e984b7d8288f6e82a26595b037067f4c1458ac281eed7cc63f529"; got != want {
		t.Errorf("id key digest: got %s, want %s", got, want)
	}
}

// No bit that is signed, of a key, of a signature or that is reserved can change.
func TestEachBit(t *testing.T) {
	t.Parallel()
	s, err := Sign(rand.Reader, testBlock(), newKey(t, elliptic.P384()), newKey(t, elliptic.P384()))
	if err != nil {
		t.Fatal(err)
	}
	verified := func(block, auth []byte) bool {
		_, err := Verify(block, auth)
		return err == nil
	}
	teetest.EachBit(t, "block", s.Block[:], func(block []byte) bool { return verified(block, s.Auth[:]) })
	for name, part := range map[string][2]int{
		"algorithms": {0, 16}, "block signature": {offBlockSig, offBlockSig + 2*numberSize}, "id key": {offIDKey, offIDKey + 4 + 2*numberSize},
		"id key signature": {offIDKeySig, offIDKeySig + 2*numberSize}, "author key": {offAuthorKey, offAuthorKey + 4 + 2*numberSize}, "end": {AuthSize - 8, AuthSize},
	} {
		teetest.EachBit(t, name, s.Auth[part[0]:part[1]], func(data []byte) bool {
			auth := s.Auth
			copy(auth[part[0]:], data)
			return verified(s.Block[:], auth[:])
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	good, err := Sign(rand.Reader, testBlock(), newKey(t, elliptic.P384()), newKey(t, elliptic.P384()))
	if err != nil {
		t.Fatal(err)
	}
	n := elliptic.P384().Params().N
	for name, tc := range map[string]struct {
		change func(block, auth []byte) ([]byte, []byte)
		want   string
	}{
		"short block":        {func(b, a []byte) ([]byte, []byte) { return b[1:], a }, "id block: expected 96 bytes"},
		"short auth":         {func(b, a []byte) ([]byte, []byte) { return b, a[1:] }, "id auth: expected 4096 bytes"},
		"version":            {func(b, a []byte) ([]byte, []byte) { b[0x50] = 2; return b, a }, "version"},
		"algorithm":          {func(b, a []byte) ([]byte, []byte) { a[0] = 2; return b, a }, "id key algorithm"},
		"author algorithm":   {func(b, a []byte) ([]byte, []byte) { a[4] = 0; return b, a }, "author key algorithm"},
		"curve":              {func(b, a []byte) ([]byte, []byte) { a[offIDKey] = 1; return b, a }, "curve 2"},
		"reserved":           {func(b, a []byte) ([]byte, []byte) { a[0x20] = 1; return b, a }, "zeroes"},
		"off the curve":      {func(b, a []byte) ([]byte, []byte) { a[offIDKey+4]++; return b, a }, "key:"},
		"long number":        {func(b, a []byte) ([]byte, []byte) { a[offBlockSig+50] = 1; return b, a }, "384 bits"},
		"zero signature":     {func(b, a []byte) ([]byte, []byte) { clear(a[offBlockSig:offIDKey]); return b, a }, "is not the key's"},
		"r is the order":     {func(b, a []byte) ([]byte, []byte) { putSignature(a[offBlockSig:], n, big.NewInt(1)); return b, a }, "is not the key's"},
		"s is the order":     {func(b, a []byte) ([]byte, []byte) { putSignature(a[offBlockSig:], big.NewInt(1), n); return b, a }, "is not the key's"},
		"author without key": {func(b, a []byte) ([]byte, []byte) { clear(a[offAuthorKey:]); clear(a[4:8]); return b, a }, "without an author algorithm"},
	} {
		b, a := good.Block, good.Auth
		block, auth := tc.change(b[:], a[:])
		v, err := Verify(block, auth)
		if err == nil || !strings.Contains(err.Error(), tc.want) || v != (Verified{}) {
			t.Errorf("%s: got %v; want an error with %q", name, err, tc.want)
		}
	}
	if _, err := Sign(rand.Reader, testBlock(), newKey(t, elliptic.P256()), nil); err == nil || !strings.Contains(err.Error(), "P-384") {
		t.Errorf("P-256 ID key: got %v", err)
	}
	if _, err := Sign(rand.Reader, testBlock(), newKey(t, elliptic.P384()), newKey(t, elliptic.P521())); err == nil || !strings.Contains(err.Error(), "P-384") {
		t.Errorf("P-521 author key: got %v", err)
	}
	if _, err := Sign(rand.Reader, testBlock(), nil, nil); err == nil {
		t.Error("no key: no error")
	}
	if _, err := KeyDigest(nil); err == nil {
		t.Error("no public key: no error")
	}
}

func FuzzVerify(f *testing.F) {
	s, err := SignAnonymously(testBlock())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Block[:], s.Auth[:])
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, block, auth []byte) {
		v, err := Verify(block, auth)
		if err != nil {
			return
		}
		if again := v.Block.Bytes(); !bytes.Equal(again[:], block) || binary.LittleEndian.Uint32(auth) != algoP384SHA384 {
			t.Error("what was verified is not what was given")
		}
	})
}
