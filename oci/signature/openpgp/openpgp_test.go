package openpgp_test

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"fmt"
	"strings"
	"testing"
	"time"

	pgp "github.com/ProtonMail/go-crypto/openpgp"
	pgparmor "github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/coffer-project/coffer/oci/signature/openpgp"
)

var (
	epoch   = time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)
	payload = []byte(`{"critical":{"type":"atomic container signature"}}`)
)

// at is a configuration that signs at a time.
func at(t time.Time, algo packet.PublicKeyAlgorithm, curve packet.Curve) *packet.Config {
	return &packet.Config{Time: func() time.Time { return t }, Algorithm: algo, Curve: curve, RSABits: 2048, DefaultHash: crypto.SHA512}
}

func newEntity(t testing.TB, c *packet.Config) *pgp.Entity {
	t.Helper()
	e, err := pgp.NewEntity("Release", "", "release@example.com", c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func export(t testing.TB, entities ...*pgp.Entity) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, e := range entities {
		if err := e.Serialize(&b); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func signWith(t testing.TB, e *pgp.Entity, c *packet.Config) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pgp.Sign(&b, e, nil, c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(payload); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func keyring(t testing.TB, data []byte) *openpgp.Keyring {
	t.Helper()
	k, err := openpgp.ParseKeyring(data)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func want(t testing.TB, name string, err error, text string) {
	t.Helper()
	if (err == nil) != (text == "") || (err != nil && !strings.Contains(err.Error(), text)) {
		t.Errorf("%s: want %q, got %v", name, text, err)
	}
}

// algorithms are those that go-crypto makes and we verify.
var algorithms = map[string]*packet.Config{
	"RSA":     at(epoch, packet.PubKeyAlgoRSA, ""),
	"EdDSA":   at(epoch, packet.PubKeyAlgoEdDSA, packet.Curve25519),
	"Ed25519": at(epoch, packet.PubKeyAlgoEd25519, ""),
	"P-256":   at(epoch, packet.PubKeyAlgoECDSA, packet.CurveNistP256),
	"P-384":   at(epoch, packet.PubKeyAlgoECDSA, packet.CurveNistP384),
	"P-521":   at(epoch, packet.PubKeyAlgoECDSA, packet.CurveNistP521),
}

func armored(t testing.TB, kind string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pgparmor.Encode(&b, kind, map[string]string{"Comment": "a test"})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(data)
	_ = w.Close()
	return b.Bytes()
}

// What go-crypto makes verifies here, binary and armored, compressed or not.
func TestAgainstGoCrypto(t *testing.T) {
	t.Parallel()
	for name, c := range algorithms {
		e := newEntity(t, c)
		public := export(t, e)
		for compression, algo := range map[string]packet.CompressionAlgo{"plain": packet.CompressionNone, "ZIP": packet.CompressionZIP, "ZLIB": packet.CompressionZLIB} {
			s := *c
			s.Time = func() time.Time { return epoch.Add(time.Hour) }
			message := signWith(t, e, &s)
			if algo != packet.CompressionNone {
				var b bytes.Buffer
				w, err := packet.SerializeCompressed(nopCloser{&b}, algo, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = w.Write(message)
				_ = w.Close()
				message = b.Bytes()
			}
			for form, in := range map[string][2][]byte{
				"binary":  {public, message},
				"armored": {armored(t, "PGP PUBLIC KEY BLOCK", public), armored(t, "PGP MESSAGE", message)},
			} {
				got, err := keyring(t, in[0]).Verify(in[1], epoch.Add(2*time.Hour))
				if err != nil {
					t.Errorf("%s, %s, %s: %v", name, compression, form, err)
					continue
				}
				if !bytes.Equal(got.Payload, payload) || got.Primary != fmt.Sprintf("%x", e.PrimaryKey.Fingerprint) || !got.Created.Equal(epoch.Add(time.Hour)) {
					t.Errorf("%s, %s, %s: %+v", name, compression, form, got)
				}
			}
		}
	}
}

type nopCloser struct{ *bytes.Buffer }

func (nopCloser) Close() error { return nil }

// Keys and times that must not count.
func TestValidity(t *testing.T) {
	t.Parallel()
	c := algorithms["EdDSA"]
	day := 24 * time.Hour
	later := func(d time.Duration) *packet.Config { return at(epoch.Add(d), c.Algorithm, c.Curve) }
	withSubkey := func(t *testing.T, lifetime uint32) *pgp.Entity {
		e := newEntity(t, c)
		s := later(time.Minute)
		s.KeyLifetimeSecs = lifetime
		if err := e.AddSigningSubkey(s); err != nil {
			t.Fatal(err)
		}
		return e
	}
	for name, tt := range map[string]struct {
		make func(t *testing.T) (public, message []byte)
		now  time.Time
		want string
	}{
		"good": {func(t *testing.T) ([]byte, []byte) {
			e := newEntity(t, c)
			return export(t, e), signWith(t, e, later(day))
		}, epoch.Add(2 * day), ""},
		"by a subkey": {func(t *testing.T) ([]byte, []byte) {
			e := withSubkey(t, 0)
			return export(t, e), signWith(t, e, later(day))
		}, epoch.Add(2 * day), ""},
		"another key": {func(t *testing.T) ([]byte, []byte) {
			return export(t, newEntity(t, c)), signWith(t, newEntity(t, c), later(day))
		}, epoch.Add(2 * day), "not in the keyring"},
		"revoked key": {func(t *testing.T) ([]byte, []byte) {
			e := newEntity(t, c)
			m := signWith(t, e, later(day))
			if err := e.RevokeKey(packet.KeyRetired, "", later(2*day)); err != nil {
				t.Fatal(err)
			}
			return export(t, e), m
		}, epoch.Add(3 * day), "it was revoked"},
		"revoked subkey": {func(t *testing.T) ([]byte, []byte) {
			e := withSubkey(t, 0)
			m := signWith(t, e, later(day))
			if err := e.RevokeSubkey(&e.Subkeys[len(e.Subkeys)-1], packet.KeyCompromised, "", later(2*day)); err != nil {
				t.Fatal(err)
			}
			return export(t, e), m
		}, epoch.Add(3 * day), "it was revoked"},
		"subkey of a revoked key": {func(t *testing.T) ([]byte, []byte) {
			e := withSubkey(t, 0)
			m := signWith(t, e, later(day))
			if err := e.RevokeKey(packet.KeyCompromised, "", later(2*day)); err != nil {
				t.Fatal(err)
			}
			return export(t, e), m
		}, epoch.Add(3 * day), "it was revoked"},
		"expired key": {func(t *testing.T) ([]byte, []byte) {
			s := later(0)
			s.KeyLifetimeSecs = uint32(2 * day / time.Second)
			e := newEntity(t, s)
			return export(t, e), signWith(t, e, later(day))
		}, epoch.Add(3 * day), "it expired at 2025-03-03"},
		"expired subkey": {func(t *testing.T) ([]byte, []byte) {
			e := withSubkey(t, uint32(2*day/time.Second))
			return export(t, e), signWith(t, e, later(day))
		}, epoch.Add(3 * day), "it expired at 2025-03-03"},
		"older than the key": {func(t *testing.T) ([]byte, []byte) {
			e := newEntity(t, later(day))
			return export(t, e), backdated(t, e)
		}, epoch.Add(2 * day), "older than the key"},
		"to come": {func(t *testing.T) ([]byte, []byte) {
			e := newEntity(t, c)
			return export(t, e), signWith(t, e, later(day))
		}, epoch, "is the clock right?"},
		"expired signature": {func(t *testing.T) ([]byte, []byte) {
			e := newEntity(t, c)
			s := later(day)
			s.SigLifetimeSecs = 3600
			return export(t, e), signWith(t, e, s)
		}, epoch.Add(2 * day), "the signature expired at"},
		"SHA-1": {func(t *testing.T) ([]byte, []byte) { e := newEntity(t, c); return export(t, e), renamed(t, e, 2) }, epoch.Add(2 * day), "signature by digest 2 (SHA-1)"},
		"MD5":   {func(t *testing.T) ([]byte, []byte) { e := newEntity(t, c); return export(t, e), renamed(t, e, 1) }, epoch.Add(2 * day), "signature by digest 1 (MD5)"},
		"SHA-224": {func(t *testing.T) ([]byte, []byte) {
			e := newEntity(t, c)
			return export(t, e), weak(t, e, crypto.SHA224)
		}, epoch.Add(2 * day), "signature by digest 11 (SHA-224)"},
		"subkey bound by another": {func(t *testing.T) ([]byte, []byte) {
			e, victim := withSubkey(t, 0), newEntity(t, c)
			m := signWith(t, e, later(day))
			victim.Subkeys = append(victim.Subkeys, e.Subkeys[len(e.Subkeys)-1])
			return export(t, victim), m
		}, epoch.Add(2 * day), "it is not bound to its primary key"},
		"without cross-certification": {func(t *testing.T) ([]byte, []byte) {
			e := withSubkey(t, 0)
			m := signWith(t, e, later(day))
			sub := &e.Subkeys[len(e.Subkeys)-1]
			sub.Sig.EmbeddedSignature = nil
			if err := sub.Sig.SignKey(sub.PublicKey, e.PrivateKey, later(time.Minute)); err != nil {
				t.Fatal(err)
			}
			return export(t, e), m
		}, epoch.Add(2 * day), "it did not sign its primary key"},
		"key without self-signature": {func(t *testing.T) ([]byte, []byte) {
			e := newEntity(t, c)
			m := signWith(t, e, later(day))
			e.Identities, e.Subkeys = nil, nil
			return export(t, e), m
		}, epoch.Add(2 * day), "no signature of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			public, message := tt.make(t)
			k, err := openpgp.ParseKeyring(public)
			if err == nil {
				_, err = k.Verify(message, tt.now)
			}
			want(t, name, err, tt.want)
		})
	}
}

// backdated is a message whose signature claims to be from before the key.
func backdated(t testing.TB, e *pgp.Entity) []byte { return raw(t, e, crypto.SHA512, epoch) }

// weak is a message signed by way of a digest.
func weak(t testing.TB, e *pgp.Entity, h crypto.Hash) []byte {
	return raw(t, e, h, epoch.Add(24*time.Hour))
}

// renamed is a message whose signature names another digest.
func renamed(t testing.TB, e *pgp.Entity, digest byte) []byte {
	t.Helper()
	m := raw(t, e, crypto.SHA512, epoch.Add(24*time.Hour))
	m[2+3] = digest // after the packet's header of two bytes
	return m
}

// raw makes a message in the older form: signature, literal.
func raw(t testing.TB, e *pgp.Entity, h crypto.Hash, created time.Time) []byte {
	t.Helper()
	s := &packet.Signature{Version: 4, SigType: packet.SigTypeBinary, PubKeyAlgo: e.PrivateKey.PubKeyAlgo, Hash: h, CreationTime: created, IssuerKeyId: &e.PrivateKey.KeyId}
	w := h.New()
	w.Write(payload)
	if err := s.Sign(w, e.PrivateKey, nil); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	l, err := packet.SerializeLiteral(nopCloser{&b}, true, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = l.Write(payload)
	_ = l.Close()
	return b.Bytes()
}

func TestKeyrings(t *testing.T) {
	t.Parallel()
	c := algorithms["EdDSA"]
	e := newEntity(t, c)
	var private bytes.Buffer
	if err := e.SerializePrivate(&private, nil); err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(pgpRand{}, 1024)
	if err != nil {
		t.Fatal(err)
	}
	var weakKey bytes.Buffer
	if err := packet.NewRSAPublicKey(epoch, &small.PublicKey).Serialize(&weakKey); err != nil {
		t.Fatal(err)
	}
	good := export(t, e)
	corrupt := bytes.Replace(armored(t, "PGP PUBLIC KEY BLOCK", good), []byte("\n="), []byte("\n=A"), 1)
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"empty":            {nil, "expected public keys, found none"},
		"text":             {[]byte("hello"), "this is no OpenPGP packet"},
		"private key":      {private.Bytes(), "there is a private key in it"},
		"1024 bits":        {weakKey.Bytes(), "RSA of 1024 bits"},
		"a message":        {signWith(t, e, c), "does not belong into a keyring"},
		"armor of another": {armored(t, "PGP MESSAGE", good), "expected -----BEGIN PGP PUBLIC KEY BLOCK-----"},
		"wrong checksum":   {corrupt, "armor"},
		"too long":         {make([]byte, openpgp.MaxKeyring+1), "at most"},
		"two keys":         {export(t, newEntity(t, c), e), ""},
		"with a weak one":  {append(weakKey.Bytes(), good...), ""},
	} {
		_, err := openpgp.ParseKeyring(tt.data)
		want(t, name, err, tt.want)
	}
}

// bombs stay within the limit.
func TestBomb(t *testing.T) {
	t.Parallel()
	e := newEntity(t, algorithms["EdDSA"])
	var b bytes.Buffer
	w, err := packet.SerializeCompressed(nopCloser{&b}, packet.CompressionZIP, &packet.CompressionConfig{Level: 9})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(make([]byte, 64<<20))
	_ = w.Close()
	if b.Len() > openpgp.MaxMessage {
		t.Fatalf("%d bytes", b.Len())
	}
	_, err = keyring(t, export(t, e)).Verify(b.Bytes(), epoch)
	want(t, "bomb", err, "it holds more than")
	// A compressed message in a compressed message.
	var inner bytes.Buffer
	w, _ = packet.SerializeCompressed(nopCloser{&inner}, packet.CompressionZIP, nil)
	_, _ = w.Write(signWith(t, e, algorithms["EdDSA"]))
	_ = w.Close()
	b.Reset()
	w, _ = packet.SerializeCompressed(nopCloser{&b}, packet.CompressionZIP, nil)
	_, _ = w.Write(inner.Bytes())
	_ = w.Close()
	_, err = keyring(t, export(t, e)).Verify(b.Bytes(), epoch)
	want(t, "nested", err, "expected a literal with one signature")
}

type pgpRand struct{}

func (pgpRand) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i*7 + 1)
	}
	return len(p), nil
}

func FuzzParseKeyring(f *testing.F) {
	e := newEntity(f, algorithms["EdDSA"])
	if err := e.AddSigningSubkey(algorithms["P-256"]); err != nil {
		f.Fatal(err)
	}
	f.Add(export(f, e))
	f.Add(armored(f, "PGP PUBLIC KEY BLOCK", export(f, newEntity(f, algorithms["P-384"]))))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := openpgp.ParseKeyring(data)
		if (k == nil) == (err == nil) {
			t.Errorf("%v, %v", k, err)
		}
	})
}

// FuzzVerify: nothing but the message itself verifies.
func FuzzVerify(f *testing.F) {
	e := newEntity(f, algorithms["EdDSA"])
	k := keyring(f, export(f, e))
	f.Add(signWith(f, e, algorithms["EdDSA"]))
	f.Add(armored(f, "PGP MESSAGE", raw(f, e, crypto.SHA512, epoch)))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := k.Verify(data, epoch.Add(time.Hour))
		if err == nil && !bytes.Equal(s.Payload, payload) {
			t.Errorf("%q was accepted", s.Payload)
		}
	})
}
