package crypt_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/secret"
)

const kid = "kbs:///default/image-kek/1"

// keyMap is a source of keys by kid.
type keyMap map[string]string

func (m keyMap) Key(_ context.Context, kid string) (secret.Bytes, error) {
	k, ok := m[kid]
	if !ok {
		return secret.Bytes{}, fmt.Errorf("no resource %s", kid)
	}
	return secret.New([]byte(k)), nil
}

func randomKey(t testing.TB) string {
	t.Helper()
	b := make([]byte, crypt.KeySize)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// seal encrypts and returns ciphertext and annotations.
func seal(t testing.TB, plain []byte, recipients ...encrypt.Recipient) ([]byte, map[string]string) {
	t.Helper()
	l, err := encrypt.NewLayer(bytes.NewReader(plain), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ciphertext, err := io.ReadAll(l)
	if err != nil {
		t.Fatal(err)
	}
	annotations, err := l.Annotations(recipients...)
	if err != nil {
		t.Fatal(err)
	}
	return ciphertext, annotations
}

func open(ctx context.Context, ciphertext []byte, annotations map[string]string, keys crypt.KeySource) ([]byte, error) {
	l, err := crypt.Unwrap(ctx, annotations, keys)
	if err != nil {
		return nil, err
	}
	r, err := l.Open(bytes.NewReader(ciphertext))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	key := randomKey(t)
	for _, size := range []int{0, 1, 15, 16, 17, 4096, 1<<20 + 3} {
		plain := bytes.Repeat([]byte("p"), size)
		ciphertext, annotations := seal(t, plain, encrypt.Recipient{KID: kid, Key: secret.New([]byte(key))})
		if size > 64 && bytes.Contains(ciphertext, []byte("pppppppp")) {
			t.Error("plaintext in the ciphertext")
		}
		got, err := open(t.Context(), ciphertext, annotations, keyMap{kid: key})
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestSeveralRecipients(t *testing.T) {
	t.Parallel()
	one, two := randomKey(t), randomKey(t)
	ciphertext, annotations := seal(t, []byte("hello"),
		encrypt.Recipient{KID: kid, Key: secret.New([]byte(one))}, encrypt.Recipient{KID: kid + "b", Key: secret.New([]byte(two))})
	for name, keys := range map[string]keyMap{"first": {kid: one}, "second": {kid + "b": two}, "first is wrong": {kid: two, kid + "b": two}} {
		if got, err := open(t.Context(), ciphertext, annotations, keys); err != nil || string(got) != "hello" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// The known answer of guest-components.
func TestKnownPacket(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/kbs_annotation_packet.json")
	if err != nil {
		t.Fatal(err)
	}
	p, err := crypt.ParsePacket(data)
	if err != nil {
		t.Fatal(err)
	}
	kek, _ := hex.DecodeString("d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea")
	plain, err := p.Unwrap(secret.New(kek))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"symkey":"1jL2jJV0Oyz2nmPkLtqulW6cKcpIUN5FpILcVnP5Uqs=","digest":"sha256:18be1897f9402f27c8c0eba7c86e0c00f5656db62961b5949d55f9565c42c6e7","cipheroptions":{"nonce":"r10F9oaCu+nWFXfod3l83g=="}}`
	if string(plain.Expose()) != want {
		t.Errorf("want %s, got %s", want, plain.Expose())
	}
	kek[0] ^= 1
	if _, err := p.Unwrap(secret.New(kek)); err == nil || !strings.Contains(err.Error(), "does not open the key packet") {
		t.Errorf("wrong key: %v", err)
	}
}

// Version 2 of the packet, with CTR, as image-rs reads it.
func TestPacketVersion2CTR(t *testing.T) {
	t.Parallel()
	key := randomKey(t)
	ciphertext, annotations := seal(t, []byte("hello"), encrypt.Recipient{KID: kid, Key: secret.New([]byte(key))})
	raw, _ := base64.StdEncoding.DecodeString(annotations[crypt.AnnotationKeys])
	p, err := crypt.ParsePacket(raw)
	if err != nil {
		t.Fatal(err)
	}
	private, err := p.Unwrap(secret.New([]byte(key)))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := aes.NewCipher([]byte(key))
	iv := make([]byte, aes.BlockSize)
	wrapped := make([]byte, private.Len())
	cipher.NewCTR(block, iv).XORKeyStream(wrapped, private.Expose())
	v2 := map[string]any{"version": "0.1.0", "provider": "kbs", "kid": kid, "wrapped_data": wrapped, "iv": iv, "wrap_type": "A256CTR",
		"provider_settings": map[string]any{}, "annotations": map[string]any{}}
	b, _ := json.Marshal(v2)
	annotations[crypt.AnnotationKeys] = base64.StdEncoding.EncodeToString(b)
	if got, err := open(t.Context(), ciphertext, annotations, keyMap{kid: key}); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := open(t.Context(), ciphertext, annotations, keyMap{kid: randomKey(t)}); err == nil || !strings.Contains(err.Error(), "not the private options") {
		t.Errorf("wrong key: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	key := randomKey(t)
	plain := bytes.Repeat([]byte("plain"), 1000)
	ciphertext, good := seal(t, plain, encrypt.Recipient{KID: kid, Key: secret.New([]byte(key))})
	packet := func(change func(map[string]any)) string {
		raw, _ := base64.StdEncoding.DecodeString(good[crypt.AnnotationKeys])
		var m map[string]any
		_ = json.Unmarshal(raw, &m)
		change(m)
		b, _ := json.Marshal(m)
		return base64.StdEncoding.EncodeToString(b)
	}
	with := func(name, value string) map[string]string {
		m := maps.Clone(good)
		if value == "" {
			delete(m, name)
		} else {
			m[name] = value
		}
		return m
	}
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	flip := func(i int) []byte {
		c := bytes.Clone(ciphertext)
		c[i] ^= 1
		return c
	}
	keys := keyMap{kid: key}
	jwe := with(crypt.AnnotationKeys, "")
	jwe[crypt.AnnotationKeysPrefix+"jwe"] = "x"
	for name, tt := range map[string]struct {
		ciphertext  []byte
		annotations map[string]string
		keys        crypt.KeySource
		want        string
	}{
		"first byte changed": {flip(0), good, keys, "MAC does not match"},
		"last byte changed":  {flip(len(ciphertext) - 1), good, keys, "MAC does not match"},
		"cut off":            {ciphertext[:len(ciphertext)-1], good, keys, "MAC does not match"},
		"empty":              {nil, good, keys, "MAC does not match"},
		"longer":             {append(bytes.Clone(ciphertext), 0), good, keys, "MAC does not match"},
		"other MAC":          {ciphertext, with(crypt.AnnotationPubOpts, b64(`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"`+b64(strings.Repeat("x", 32))+`","cipheroptions":{}}`)), keys, "MAC does not match"},
		"short MAC":          {ciphertext, with(crypt.AnnotationPubOpts, b64(`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAA","cipheroptions":{}}`)), keys, "hmac: expected 32 bytes, got 3"},
		"no MAC":             {ciphertext, with(crypt.AnnotationPubOpts, b64(`{"cipher":"AES_256_CTR_HMAC_SHA256"}`)), keys, "hmac: expected 32 bytes, got 0"},
		"other cipher":       {ciphertext, with(crypt.AnnotationPubOpts, b64(`{"cipher":"AES_256_CTR","hmac":"AAAA"}`)), keys, "cipher: expected AES_256_CTR_HMAC_SHA256"},
		"no public options":  {ciphertext, with(crypt.AnnotationPubOpts, ""), keys, "pubopts: missing"},
		"public no base64":   {ciphertext, with(crypt.AnnotationPubOpts, "*"), keys, "pubopts: illegal base64"},
		"public no JSON":     {ciphertext, with(crypt.AnnotationPubOpts, b64("{")), keys, "pubopts: JSON"},
		"no packet":          {ciphertext, with(crypt.AnnotationKeys, ""), keys, "attestation-agent: missing from an encrypted layer"},
		"for a private key":  {ciphertext, jwe, keys, "wrapped by jwe, which a guest cannot open"},
		"packet no base64":   {ciphertext, with(crypt.AnnotationKeys, "*"), keys, "entry 0: illegal base64"},
		"packet no JSON":     {ciphertext, with(crypt.AnnotationKeys, b64("x")), keys, "key packet: JSON"},
		"too many packets":   {ciphertext, with(crypt.AnnotationKeys, strings.Repeat(",", 16)), keys, "17 key packets"},
		"large packet":       {ciphertext, with(crypt.AnnotationKeys, b64(strings.Repeat(" ", 20000))), keys, "key packet: JSON"},
		"packet changed":     {ciphertext, with(crypt.AnnotationKeys, packet(func(m map[string]any) { m["iv"] = "AAAAAAAAAAAAAAAA" })), keys, "does not open the key packet"},
		"unknown field":      {ciphertext, with(crypt.AnnotationKeys, packet(func(m map[string]any) { m["x"] = 1 })), keys, "x"},
		"short IV":           {ciphertext, with(crypt.AnnotationKeys, packet(func(m map[string]any) { m["iv"] = "AAAA" })), keys, "iv: expected 12 bytes for A256GCM, got 3"},
		"CTR with short IV":  {ciphertext, with(crypt.AnnotationKeys, packet(func(m map[string]any) { m["wrap_type"] = "A256CTR" })), keys, "iv: expected 16 bytes for A256CTR, got 12"},
		"wrap type":          {ciphertext, with(crypt.AnnotationKeys, packet(func(m map[string]any) { m["wrap_type"] = "none" })), keys, "wrap_type"},
		"provider":           {ciphertext, with(crypt.AnnotationKeys, packet(func(m map[string]any) { m["provider"] = "aliyun" })), keys, `provider: "aliyun" is not supported`},
		"version":            {ciphertext, with(crypt.AnnotationKeys, packet(func(m map[string]any) { m["version"] = "9" })), keys, "version"},
		"file as kid":        {ciphertext, with(crypt.AnnotationKeys, packet(func(m map[string]any) { m["kid"] = "file:///etc/shadow" })), keys, "kid: expected kbs://"},
		"no wrapped data":    {ciphertext, with(crypt.AnnotationKeys, packet(func(m map[string]any) { m["wrapped_data"] = "" })), keys, "wrapped_data: missing"},
		"wrong key":          {ciphertext, good, keyMap{kid: randomKey(t)}, "does not open the key packet"},
		"short key":          {ciphertext, good, keyMap{kid: "short"}, "expected 32 bytes, got 5"},
		"key refused":        {ciphertext, good, keyMap{}, "key " + kid + ": no resource"},
		"no source of keys":  {ciphertext, good, nil, "no source of keys"},
	} {
		got, err := open(t.Context(), tt.ciphertext, tt.annotations, tt.keys)
		if err == nil || got != nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
		if strings.Contains(tt.want, "MAC does") && !errors.Is(err, crypt.ErrMAC) {
			t.Errorf("%s: %v is not ErrMAC", name, err)
		}
	}
}

func TestEncryptErrors(t *testing.T) {
	t.Parallel()
	key := secret.New([]byte(randomKey(t)))
	for _, r := range []encrypt.Recipient{
		{KID: "", Key: key}, {KID: "kbs://", Key: key}, {KID: "kbs:///a/b", Key: key}, {KID: "kbs:///a//b", Key: key}, {KID: "/a/b/c", Key: key},
		{KID: "kbs:///a/b/c/d", Key: key}, {KID: kid}, {KID: kid, Key: secret.New([]byte("short"))},
	} {
		if err := r.Check(); err == nil {
			t.Errorf("%q with %d bytes was accepted", r.KID, r.Key.Len())
		}
	}
	l, err := encrypt.NewLayer(strings.NewReader("x"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Annotations(encrypt.Recipient{KID: kid, Key: key}); err == nil {
		t.Error("annotations before the end")
	}
	if _, err := encrypt.NewLayer(nil, iotest.ErrReader(errors.New("no entropy"))); err == nil {
		t.Error("no entropy was accepted")
	}
}

func FuzzUnwrap(f *testing.F) {
	key := randomKey(f)
	_, good := seal(f, []byte("x"), encrypt.Recipient{KID: kid, Key: secret.New([]byte(key))})
	f.Add(good[crypt.AnnotationKeys], good[crypt.AnnotationPubOpts])
	f.Add("", "")
	f.Fuzz(func(t *testing.T, packets, public string) {
		l, err := crypt.Unwrap(t.Context(), map[string]string{crypt.AnnotationKeys: packets, crypt.AnnotationPubOpts: public}, keyMap{kid: key})
		if (l == nil) == (err == nil) {
			t.Errorf("%v, %v", l, err)
		}
	})
}

func FuzzParsePacket(f *testing.F) {
	data, err := os.ReadFile("testdata/kbs_annotation_packet.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := crypt.ParsePacket(data)
		if (p == nil) == (err == nil) {
			t.Errorf("%v, %v", p, err)
		}
		if p != nil {
			_, _ = p.Unwrap(secret.New(make([]byte, crypt.KeySize)))
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	key := randomKey(b)
	ciphertext, annotations := seal(b, make([]byte, 64<<20), encrypt.Recipient{KID: kid, Key: secret.New([]byte(key))})
	l, err := crypt.Unwrap(b.Context(), annotations, keyMap{kid: key})
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(ciphertext)))
	for b.Loop() {
		r, err := l.Open(bytes.NewReader(ciphertext))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil {
			b.Fatal(err)
		}
	}
}
