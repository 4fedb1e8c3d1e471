package p384

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"math/big"
	"testing"
)

// agree compares with the standard library.
func agree(t *testing.T, name string, pub *ecdsa.PublicKey, digest []byte, r, s *big.Int) bool {
	t.Helper()
	got, want := Verify(pub, digest, r, s), ecdsa.Verify(pub, digest, r, s)
	if got != want {
		t.Errorf("%s: got %v, crypto/ecdsa says %v (digest %x, r %x, s %x)", name, got, want, digest, r, s)
	}
	return got
}

func TestAgreesWithTheStandardLibrary(t *testing.T) {
	n := elliptic.P384().Params().N
	one := big.NewInt(1)
	for i := range 20 {
		key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha512.Sum384([]byte{byte(i)})
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		pub := &key.PublicKey
		if !agree(t, "good", pub, sum[:], r, s) {
			t.Fatal("a good signature was refused")
		}
		minus := func(x *big.Int) *big.Int { return new(big.Int).Sub(n, x) }
		plus := func(x *big.Int) *big.Int { return new(big.Int).Add(n, x) }
		agree(t, "the other s", pub, sum[:], r, minus(s))
		for name, bad := range map[string][2]*big.Int{
			"r zero": {new(big.Int), s}, "s zero": {r, new(big.Int)}, "r is n": {n, s}, "s is n": {r, n},
			"r+n": {plus(r), s}, "s+n": {r, plus(s)}, "negative": {new(big.Int).Neg(r), s}, "swapped": {s, r},
			"r one": {one, s}, "s one": {r, one}, "n-r": {minus(r), s}, "both n-1": {minus(one), minus(one)},
		} {
			if agree(t, name, pub, sum[:], bad[0], bad[1]) {
				t.Errorf("%s: accepted", name)
			}
		}
		for bit := range 8 * len(sum) {
			if bit%37 != i%37 {
				continue
			}
			other := sum
			other[bit/8] ^= 1 << (bit % 8)
			if agree(t, "other digest", pub, other[:], r, s) {
				t.Errorf("bit %d of the digest does not count", bit)
			}
		}
		agree(t, "long digest", pub, append(sum[:], 1, 2, 3), r, s)
		agree(t, "short digest", pub, sum[:20], r, s)
	}
}

// The special points of the addition: u1 G and u2 Q equal, opposite, or zero.
func TestSpecialScalars(t *testing.T) {
	curve := elliptic.P384()
	n := curve.Params().N
	for _, d := range []*big.Int{big.NewInt(1), big.NewInt(2), new(big.Int).Sub(n, big.NewInt(1)), new(big.Int).Rsh(n, 1)} {
		x, y := curve.ScalarBaseMult(d.Bytes())           //nolint:staticcheck // the special keys are what is tested
		pub := &ecdsa.PublicKey{Curve: curve, X: x, Y: y} //nolint:staticcheck // as above
		for _, k := range []int64{1, 2, 3} {
			// A signature with a known nonce k: r = (kG).x, s = (e + r d)/k.
			rx, _ := curve.ScalarBaseMult(big.NewInt(k).Bytes()) //nolint:staticcheck // as above
			r := new(big.Int).Mod(rx, n)
			for _, e := range []*big.Int{new(big.Int), new(big.Int).Mod(new(big.Int).Neg(new(big.Int).Mul(r, d)), n), new(big.Int).Mod(new(big.Int).Mul(r, d), n), big.NewInt(7)} {
				s := new(big.Int).Mul(r, d)
				s.Add(s, e).Mul(s, new(big.Int).ModInverse(big.NewInt(k), n)).Mod(s, n)
				digest := e.FillBytes(make([]byte, Size))
				agree(t, "special", pub, digest, r, s)
				agree(t, "special, s one", pub, digest, r, big.NewInt(1))
			}
		}
	}
}

func TestKeysAreChecked(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum384(nil)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	//nolint:staticcheck // keys that no better way makes
	off := &ecdsa.PublicKey{Curve: elliptic.P384(), X: key.X, Y: new(big.Int).Xor(key.Y, big.NewInt(1))}
	//nolint:staticcheck // as above
	other := &ecdsa.PublicKey{Curve: elliptic.P256(), X: key.X, Y: key.Y}
	for name, pub := range map[string]*ecdsa.PublicKey{"off the curve": off, "another curve": other, "none": nil, "infinity": {Curve: elliptic.P384(), X: new(big.Int), Y: new(big.Int)}} {
		if Verify(pub, sum[:], r, s) {
			t.Errorf("%s: accepted", name)
		}
	}
	raw := append(r.FillBytes(make([]byte, Size)), s.FillBytes(make([]byte, Size))...)
	if !VerifyRaw(&key.PublicKey, sum[:], raw) || VerifyRaw(&key.PublicKey, sum[:], raw[1:]) || VerifyRaw(&key.PublicKey, sum[:], append(raw, 0)) || VerifyRaw(&key.PublicKey, sum[:], make([]byte, 2*Size)) {
		t.Error("raw signatures")
	}
}

func BenchmarkVerify(b *testing.B) {
	key, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	sum := sha512.Sum384(nil)
	r, s, _ := ecdsa.Sign(rand.Reader, key, sum[:])
	b.Run("circl", func(b *testing.B) {
		for b.Loop() {
			Verify(&key.PublicKey, sum[:], r, s)
		}
	})
	b.Run("standard", func(b *testing.B) {
		for b.Loop() {
			ecdsa.Verify(&key.PublicKey, sum[:], r, s)
		}
	})
}
