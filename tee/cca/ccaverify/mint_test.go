package ccaverify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"

	"github.com/coffer-project/coffer/tee/cca"
)

// platform is an emulated machine. Tests change what it is about to sign.
type platform struct {
	cpak, rak       *ecdsa.PrivateKey
	platformAlg     cose.Algorithm
	realmAlg        cose.Algorithm
	platform, realm map[any]any
	// hash makes the platform's challenge of the realm's key; nil: SHA-256.
	hash func([]byte) []byte
	// unprotected goes into the platform token's header.
	unprotected cose.UnprotectedHeader
	// protected is added to the platform token's header.
	protected cose.ProtectedHeader
}

func newKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func point(t testing.TB, k *ecdsa.PrivateKey) []byte {
	t.Helper()
	b, err := k.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func coseKey(t testing.TB, k *ecdsa.PrivateKey) []byte {
	t.Helper()
	p := point(t, k)[1:]
	crv := map[elliptic.Curve]int{elliptic.P256(): 1, elliptic.P384(): 2, elliptic.P521(): 3}[k.Curve]
	return encode(t, map[int]any{1: 2, -1: crv, -2: p[:len(p)/2], -3: p[len(p)/2:]})
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func filled(n int, b byte) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = b
	}
	return out
}

// newPlatform is a machine of profile 2023 with keys on the given curves.
func newPlatform(t testing.TB, cpak, rak elliptic.Curve) *platform {
	t.Helper()
	algs := map[elliptic.Curve]cose.Algorithm{elliptic.P256(): cose.AlgorithmES256, elliptic.P384(): cose.AlgorithmES384, elliptic.P521(): cose.AlgorithmES512}
	p := &platform{cpak: newKey(t, cpak), rak: newKey(t, rak), platformAlg: algs[cpak], realmAlg: algs[rak]}
	p.platform = map[any]any{
		265: cca.ProfilePlatform, 2396: filled(32, 7), 256: append([]byte{1}, filled(32, 8)...), 2401: []byte{1, 2, 3}, 2395: 0x3000, 2402: "sha-256",
		2399: []any{map[any]any{1: "BL", 2: filled(32, 3), 4: "3.4.2", 5: filled(32, 4)}}, 2400: "https://veraison.example",
	}
	p.realm = map[any]any{
		265: cca.ProfileRealm, 10: filled(64, 'A'), 44235: filled(64, 'B'), 44236: "sha-256", 44238: filled(64, 'C'),
		44239: []any{filled(64, 1), filled(64, 2), filled(64, 3), filled(64, 4)}, 44240: "sha-256", 44237: coseKey(t, p.rak),
	}
	return p
}

func (p *platform) anchor() TrustAnchor {
	return TrustAnchor{InstanceID: append([]byte{1}, filled(32, 8)...), ImplementationID: filled(32, 7), Key: &p.cpak.PublicKey}
}

func sign(t testing.TB, key *ecdsa.PrivateKey, alg cose.Algorithm, payload []byte, protected cose.ProtectedHeader, unprotected cose.UnprotectedHeader) []byte {
	t.Helper()
	m := cose.NewSign1Message()
	m.Headers.Protected.SetAlgorithm(alg)
	for k, v := range protected {
		m.Headers.Protected[k] = v
	}
	if unprotected != nil {
		m.Headers.Unprotected = unprotected
	}
	m.Payload = payload
	signer, err := cose.NewSigner(alg, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Sign(rand.Reader, nil, signer); err != nil {
		t.Fatal(err)
	}
	raw, err := m.MarshalCBOR()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// tokens signs both tokens.
func (p *platform) tokens(t testing.TB) (platformToken, realmToken []byte) {
	t.Helper()
	if _, ok := p.platform[10]; !ok {
		key, isKey := p.realm[44237].([]byte)
		if !isKey {
			t.Fatal("no realm key to hash")
		}
		hash := p.hash
		if hash == nil {
			hash = func(b []byte) []byte { h := sha256.Sum256(b); return h[:] }
		}
		p.platform[10] = hash(key)
	}
	return sign(t, p.cpak, p.platformAlg, encode(t, p.platform), p.protected, p.unprotected), sign(t, p.rak, p.realmAlg, encode(t, p.realm), nil, nil)
}

func collect(t testing.TB, platformToken, realmToken any) []byte {
	t.Helper()
	return encode(t, cbor.Tag{Number: 399, Content: map[int]any{44234: platformToken, 44241: realmToken}})
}

func (p *platform) token(t testing.TB) []byte {
	t.Helper()
	a, b := p.tokens(t)
	return collect(t, a, b)
}

func evidence(t testing.TB, token []byte) json.RawMessage {
	t.Helper()
	e, err := (&cca.Evidence{Token: token}).JSON()
	if err != nil {
		t.Fatal(err)
	}
	return e
}
