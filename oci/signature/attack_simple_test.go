package signature_test

import (
	"bytes"
	"crypto"
	"io"
	"strings"
	"testing"
	"time"

	pgp "github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/coffer-project/coffer/oci/signature"
)

// Simple signing by subkeys that were revoked or have expired.
func TestAttackRevokedAndExpiredSubkey(t *testing.T) {
	t.Parallel()
	start := time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *packet.Config {
		return &packet.Config{Time: func() time.Time { return start.Add(d) }, Algorithm: packet.PubKeyAlgoEdDSA, Curve: packet.Curve25519, DefaultHash: crypto.SHA512}
	}
	store, ref := imageAt(t, "reg.example/shop/web")
	payload := `{"critical":{"identity":{"docker-reference":"reg.example/shop/web:1"},"image":{"docker-manifest-digest":"` + string(ref.Digest) + `"},"type":"atomic container signature"},"optional":{}}`
	for name, tt := range map[string]struct {
		lifetime uint32
		revoke   bool
		payload  string
		want     string
	}{
		"good":            {0, false, payload, ""},
		"revoked":         {0, true, payload, "it was revoked"},
		"expired":         {2 * 24 * 3600, false, payload, "it expired at 2025-03-03"},
		"another image":   {0, false, strings.Replace(payload, string(ref.Digest), string(digestB), 1), "for another image"},
		"cosign's type":   {0, false, strings.Replace(payload, "atomic container signature", "cosign container image signature", 1), "critical.type"},
		"another name":    {0, false, strings.Replace(payload, "shop/web", "shop/db", 1), "it is for the repository reg.example/shop/db"},
		"duplicate names": {0, false, strings.Replace(payload, `"type"`, `"type":"x","type"`, 1), "the name occurs twice"},
		"huge":            {0, false, strings.Replace(payload, `"optional":{}`, `"optional":{"x":"`+strings.Repeat("x", 100<<10)+`"}`, 1), "longer than the limit"},
	} {
		e, err := pgp.NewEntity("Release", "", "release@example.com", at(0))
		if err != nil {
			t.Fatal(err)
		}
		c := at(time.Minute)
		c.KeyLifetimeSecs = tt.lifetime
		if err := e.AddSigningSubkey(c); err != nil {
			t.Fatal(err)
		}
		var message, public bytes.Buffer
		w, err := pgp.Sign(&message, e, nil, at(24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, tt.payload)
		_ = w.Close()
		if tt.revoke {
			if err := e.RevokeSubkey(&e.Subkeys[len(e.Subkeys)-1], packet.KeyCompromised, "", at(48*time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Serialize(&public); err != nil {
			t.Fatal(err)
		}
		p, err := signature.ParsePolicy([]byte(`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPaths":["kbs:///k/none/1","kbs:///k/release/1"]}]}`),
			signature.WithLookaside(fixed{[]byte("x"), message.Bytes()}), signature.WithClock(func() time.Time { return start.AddDate(0, 0, 3) }))
		if err != nil {
			t.Fatal(err)
		}
		other, err := pgp.NewEntity("Other", "", "", at(0))
		if err != nil {
			t.Fatal(err)
		}
		var none bytes.Buffer
		if err := other.Serialize(&none); err != nil {
			t.Fatal(err)
		}
		_, err = p.Verify(t.Context(), subject(ref), store, keyMap{"kbs:///k/none/1": none.Bytes(), "kbs:///k/release/1": public.Bytes()})
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
}
