package kbs

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// The vectors of the key broker specification, sections 1.6 and 1.8.
const (
	vectorNonce = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	vectorX     = "tNohxSs01t6QA2tHxfaZxuqkPIlMk-hulsgR0bHAgK0"
	vectorY     = "A7aRK_Dzx0ShxvIN-K6r787V6xm68vMBiPTciwE0Ysw"

	vectorTEEKeyD = "895b01bac1a1022542d39e66951816d3769422b587658fe45cb53039fd995398"
	vectorEphD    = "a3610d6f4e09134c466de10444b81a5f6f01cd6408dea69abcc2baf25721151e"
	vectorKEK     = "ba5c8748a50a272e8336bc406af2f67106388b04c9ab626e8a4544fa75d306c1"
	vectorCEK     = "184dc4fd19e0d54d8a1b6642bb40833cfe173db157f595a7e5fca382c35b5293"
	vectorIV      = "000102030405060708090a0b"
	vectorPlain   = "hello coco"
)

var (
	vectorKey = TEEPubKey{KTY: "EC", Crv: "P-256", Alg: "ECDH-ES+A256KW", X: vectorX, Y: vectorY}

	vectorResponse = Response{
		Protected:    "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJGWnJORDNzT3kxNG1WNlJrSlppSDhJdjBkME1BdzJHTGU3d05uSmJoTkxzIiwieSI6Ino4MmNxV0NrcFdkZ0VmOGlXQnNobjlPUnFLR1lCZ1JwRzBiS0FVZmJ2cnMifX0",
		EncryptedKey: "JS8nb6pbLP2PqF8Lj2BTPG0JTktUACv8U5nLcafcuLIhw1gkYaSpaA",
		IV:           "AAECAwQFBgcICQoL",
		Ciphertext:   "kXtwibphC3zSNg",
		Tag:          "JovtbNyNQL0k_wBO1ggTZg",
	}
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func vectorTEEKey(t testing.TB) *TEEKey {
	t.Helper()
	priv, err := ecdh.P256().NewPrivateKey(unhex(t, vectorTEEKeyD))
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewTEEKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestEncryptVector(t *testing.T) {
	t.Parallel()
	random := bytes.NewReader(unhex(t, vectorEphD+vectorCEK+vectorIV))
	got, err := EncryptResponse(random, vectorKey, []byte(vectorPlain))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(vectorResponse, *got); diff != "" {
		t.Error(diff)
	}
	head, err := b64.DecodeString(got.Protected)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":"FZrND3sOy14mV6RkJZiH8Iv0d0MAw2GLe7wNnJbhNLs","y":"z82cqWCkpWdgEf8iWBshn9ORqKGYBgRpG0bKAUfbvrs"}}`
	if diff := cmp.Diff(want, string(head)); diff != "" {
		t.Error(diff)
	}
}

func TestDecryptVector(t *testing.T) {
	t.Parallel()
	k := vectorTEEKey(t)
	if k.Public() != vectorKey {
		t.Errorf("public key %v, want %v", k.Public(), vectorKey)
	}
	eph, err := ecdh.P256().NewPrivateKey(unhex(t, vectorEphD))
	if err != nil {
		t.Fatal(err)
	}
	kek, err := deriveKEK(k.ec, eph.PublicKey())
	if err != nil || hex.EncodeToString(kek) != vectorKEK {
		t.Errorf("KEK = %x, %v; want %s", kek, err, vectorKEK)
	}
	got, err := k.Decrypt(vectorResponse)
	if err != nil || string(got.Expose()) != vectorPlain {
		t.Errorf("Decrypt = %q, %v", got.Expose(), err)
	}
}

// A header in any member order and with members that do not matter must open:
// the authenticated data is the received string.
func TestDecryptUsesHeaderAsReceived(t *testing.T) {
	t.Parallel()
	k := vectorTEEKey(t)
	head := ` {"kid":"x", "epk":{"y":"z82cqWCkpWdgEf8iWBshn9ORqKGYBgRpG0bKAUfbvrs","x":"FZrND3sOy14mV6RkJZiH8Iv0d0MAw2GLe7wNnJbhNLs","kty":"EC","crv":"P-256"},"enc":"A256GCM","alg":"ECDH-ES+A256KW"}`
	r := reseal(t, vectorResponse, head)
	got, err := k.Decrypt(r)
	if err != nil || string(got.Expose()) != vectorPlain {
		t.Errorf("Decrypt = %q, %v", got.Expose(), err)
	}
}

// reseal encrypts the vector's plaintext under another protected header.
func reseal(t testing.TB, r Response, head string) Response {
	t.Helper()
	gcm, err := newGCM(unhex(t, vectorCEK))
	if err != nil {
		t.Fatal(err)
	}
	r.Protected = b64.EncodeToString([]byte(head))
	sealed := gcm.Seal(nil, unhex(t, vectorIV), []byte(vectorPlain), []byte(r.Protected))
	r.Ciphertext, r.Tag = b64.EncodeToString(sealed[:len(vectorPlain)]), b64.EncodeToString(sealed[len(vectorPlain):])
	return r
}

func TestDecryptRefuses(t *testing.T) {
	t.Parallel()
	k := vectorTEEKey(t)
	const epk = `"epk":{"crv":"P-256","kty":"EC","x":"FZrND3sOy14mV6RkJZiH8Iv0d0MAw2GLe7wNnJbhNLs","y":"z82cqWCkpWdgEf8iWBshn9ORqKGYBgRpG0bKAUfbvrs"}`
	for name, tc := range map[string]struct{ head, want string }{
		"alg":         {`{"alg":"dir","enc":"A256GCM",` + epk + `}`, `expected "ECDH-ES+A256KW", got "dir"`},
		"rsa":         {`{"alg":"RSA-OAEP-256","enc":"A256GCM"}`, "expected"},
		"enc":         {`{"alg":"ECDH-ES+A256KW","enc":"A128GCM",` + epk + `}`, `expected "A256GCM"`},
		"crit":        {`{"alg":"ECDH-ES+A256KW","enc":"A256GCM","crit":["x"],` + epk + `}`, `"crit" is not supported`},
		"zip":         {`{"alg":"ECDH-ES+A256KW","enc":"A256GCM","zip":"DEF",` + epk + `}`, `"zip" is not supported`},
		"apu":         {`{"alg":"ECDH-ES+A256KW","enc":"A256GCM","apu":"",` + epk + `}`, `"apu" is not supported`},
		"no epk":      {`{"alg":"ECDH-ES+A256KW","enc":"A256GCM"}`, `"epk" is missing`},
		"curve":       {`{"alg":"ECDH-ES+A256KW","enc":"A256GCM",` + strings.Replace(epk, "P-256", "P-521", 1) + `}`, "on P-256 as this handshake's key is"},
		"not on it":   {`{"alg":"ECDH-ES+A256KW","enc":"A256GCM",` + strings.Replace(epk, "FZrN", "AZrN", 1) + `}`, "not a point on P-256"},
		"short x":     {`{"alg":"ECDH-ES+A256KW","enc":"A256GCM",` + strings.Replace(epk, "FZrN", "", 1) + `}`, "exactly 32 bytes"},
		"duplicate":   {`{"alg":"ECDH-ES+A256KW","alg":"ECDH-ES+A256KW","enc":"A256GCM",` + epk + `}`, "occurs twice"},
		"header size": {`{"x":"` + strings.Repeat("x", maxHeaderBytes) + `"}`, "longer than 4096 bytes"},
		"no JSON":     {`x`, "protected header: invalid character"},
	} {
		got, err := k.Decrypt(reseal(t, vectorResponse, tc.head))
		if err == nil || got.Len() != 0 || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %d bytes, %v; want an error with %q", name, got.Len(), err, tc.want)
		}
	}
	other, err := GenerateTEEKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Decrypt(vectorResponse); !errors.Is(err, errDecrypt) {
		t.Errorf("another key: %v", err)
	}
}

// Every bit of every member is protected.
func TestDecryptRefusesAnyChange(t *testing.T) {
	t.Parallel()
	k := vectorTEEKey(t)
	for name, member := range map[string]func(*Response) *string{
		"protected":     func(r *Response) *string { return &r.Protected },
		"encrypted_key": func(r *Response) *string { return &r.EncryptedKey },
		"iv":            func(r *Response) *string { return &r.IV },
		"ciphertext":    func(r *Response) *string { return &r.Ciphertext },
		"tag":           func(r *Response) *string { return &r.Tag },
	} {
		whole := *member(&vectorResponse)
		raw, err := b64.DecodeString(whole)
		if err != nil {
			t.Fatal(err)
		}
		for i := range raw {
			changed := bytes.Clone(raw)
			changed[i] ^= 1 << (i % 8)
			r := vectorResponse
			*member(&r) = b64.EncodeToString(changed)
			if got, err := k.Decrypt(r); err == nil || got.Len() != 0 {
				t.Fatalf("%s: byte %d changed: got %q", name, i, got.Expose())
			}
		}
		for _, s := range []string{"", whole[:len(whole)-1], whole + "A", whole + "=", whole[:4] + "\n" + whole[4:], whole + whole} {
			r := vectorResponse
			*member(&r) = s
			if got, err := k.Decrypt(r); err == nil || got.Len() != 0 {
				t.Fatalf("%s = %q: got %q", name, s, got.Expose())
			}
		}
	}
}

func TestRoundTripP521(t *testing.T) {
	t.Parallel()
	priv, err := generate(rand.Reader, CurveP521)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewTEEKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(k.Public().X); n != 88 {
		t.Errorf("x has %d characters, want 88", n)
	}
	for _, size := range []int{0, 1, 32, MaxResourceBytes} {
		plain := bytes.Repeat([]byte{7}, size)
		r, err := EncryptResponse(rand.Reader, k.Public(), plain)
		if err != nil {
			t.Fatal(err)
		}
		wire, err := marshal(r)
		if err != nil || len(wire) > MaxResponseBytes {
			t.Fatalf("%d bytes on the wire, %v", len(wire), err)
		}
		back, err := ParseResponse(wire)
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.Decrypt(*back)
		if err != nil || !bytes.Equal(got.Expose(), plain) {
			t.Errorf("%d bytes: got %d, %v", size, got.Len(), err)
		}
	}
	p384, err := ecdh.P384().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewTEEKey(p384); err == nil {
		t.Error("a key on P-384 was accepted")
	}
}

func TestEncryptRSA(t *testing.T) {
	t.Parallel()
	r, err := EncryptResponse(rand.Reader, testRSA(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	head, err := b64.DecodeString(r.Protected)
	if err != nil || string(head) != `{"alg":"RSA-OAEP-256","enc":"A256GCM"}` {
		t.Errorf("header %s, %v", head, err)
	}
	wrapped, err := b64.DecodeString(r.EncryptedKey)
	if err != nil {
		t.Fatal(err)
	}
	cek, err := rsa.DecryptOAEP(sha256.New(), nil, rsaKey(), wrapped, nil)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := newGCM(cek)
	if err != nil {
		t.Fatal(err)
	}
	iv, _ := b64.DecodeString(r.IV)
	ct, _ := b64.DecodeString(r.Ciphertext)
	tag, _ := b64.DecodeString(r.Tag)
	plain, err := gcm.Open(nil, iv, append(ct, tag...), []byte(r.Protected))
	if err != nil || string(plain) != "x" {
		t.Errorf("got %q, %v", plain, err)
	}
}

func TestEncryptRefuses(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		key  TEEPubKey
		size int
	}{
		"zero key":  {TEEPubKey{}, 1},
		"RSA alg":   {testRSAKey(AlgECDH), 1},
		"too large": {vectorKey, MaxResourceBytes + 1},
	} {
		if r, err := EncryptResponse(rand.Reader, tc.key, make([]byte, tc.size)); err == nil || r != nil {
			t.Errorf("%s: got %v, %v", name, r, err)
		}
	}
	if _, err := EncryptResponse(iotest.ErrReader(broken), vectorKey, nil); !errors.Is(err, broken) {
		t.Errorf("broken randomness: %v", err)
	}
	if _, err := EncryptResponse(bytes.NewReader(make([]byte, 40)), vectorKey, nil); err == nil {
		t.Error("too little randomness was accepted")
	}
	if _, err := GenerateTEEKey(zeros{}); err == nil || !strings.Contains(err.Error(), "source is broken") {
		t.Errorf("randomness of zeros: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestParseResponseRefuses(t *testing.T) {
	t.Parallel()
	wire, err := marshal(vectorResponse)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseResponse(wire); err != nil || *got != vectorResponse {
		t.Fatalf("got %v, %v", got, err)
	}
	good := string(wire)
	for name, tc := range map[string]struct{ doc, want string }{
		"aad":       {`{"aad":"AA",` + good[1:], `"aad" is not supported`},
		"header":    {`{"header":{},` + good[1:], `"header" is not supported`},
		"missing":   {strings.Replace(good, `"tag"`, `"tig"`, 1), `"tag" is missing`},
		"type":      {strings.Replace(good, `"AAECAwQFBgcICQoL"`, `[1]`, 1), `"iv": expected a string, got array`},
		"compact":   {"eyJ.a.b.c.d", "invalid character"},
		"plain":     {`"secret"`, "expected a JSON object, got string"},
		"duplicate": {`{"tag":"x",` + good[1:], "occurs twice"},
	} {
		if got, err := ParseResponse([]byte(tc.doc)); err == nil || got != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, got, err, tc.want)
		}
	}
}

func FuzzParseResponse(f *testing.F) {
	wire, err := marshal(vectorResponse)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	k := vectorTEEKey(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseResponse(data)
		if (r == nil) == (err == nil) {
			t.Fatalf("got %v, %v", r, err)
		}
		if err != nil {
			return
		}
		// Nobody but the fuzzer's own seed has a valid tag.
		if got, err := k.Decrypt(*r); err == nil && string(got.Expose()) != vectorPlain {
			t.Fatalf("forged %q", got.Expose())
		}
	})
}

func FuzzDecryptHeader(f *testing.F) {
	head, err := b64.DecodeString(vectorResponse.Protected)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(head)
	k := vectorTEEKey(f)
	f.Fuzz(func(t *testing.T, head []byte) {
		o, err := k.parseHeader(b64.EncodeToString(head))
		if (o.members == nil) == (err == nil) {
			t.Fatalf("got %v, %v", o, err)
		}
		if err != nil {
			return
		}
		if pub, err := k.ephemeral(o); (pub == nil) == (err == nil) {
			t.Fatalf("got %v, %v", pub, err)
		}
	})
}
