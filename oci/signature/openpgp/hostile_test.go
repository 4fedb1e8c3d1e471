package openpgp_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/coffer-project/coffer/oci/signature/openpgp"
)

// A message with any bit changed either does not verify, or is the same
// message in other clothes: names of files and hints are not signed.
func TestMutatedMessages(t *testing.T) {
	t.Parallel()
	for name, c := range algorithms {
		if testing.Short() && name != "EdDSA" {
			continue
		}
		e := newEntity(t, c)
		k := keyring(t, export(t, e))
		message := signWith(t, e, c)
		same, step := 0, 1
		if name == "P-384" || name == "P-521" { // their verification takes long
			step = 7
		}
		for i := 0; i < len(message)*8; i += step {
			m := bytes.Clone(message)
			m[i/8] ^= 1 << (i % 8)
			got, err := k.Verify(m, epoch.Add(time.Hour))
			if err != nil {
				continue
			}
			same++
			if !bytes.Equal(got.Payload, payload) || !got.Created.Equal(epoch) || got.Primary != fmt.Sprintf("%x", e.PrimaryKey.Fingerprint) {
				t.Errorf("%s: bit %d: another message was accepted: %+v", name, i, got)
			}
		}
		if same > len(message)*8/step/4 {
			t.Errorf("%s: %d of %d bits do not matter", name, same, len(message)*8)
		}
		for i := range message {
			if _, err := k.Verify(message[:i], epoch.Add(time.Hour)); err == nil {
				t.Errorf("%s: the first %d of %d bytes were accepted", name, i, len(message))
			}
		}
		if _, err := k.Verify(append(bytes.Clone(message), message...), epoch.Add(time.Hour)); err == nil {
			t.Errorf("%s: two messages were accepted as one", name)
		}
	}
}

// A keyring with any bit changed verifies nothing but what it verified before.
func TestMutatedKeyring(t *testing.T) {
	t.Parallel()
	c := algorithms["EdDSA"]
	e := newEntity(t, c)
	if err := e.AddSigningSubkey(c); err != nil {
		t.Fatal(err)
	}
	public, message := export(t, e), signWith(t, e, c)
	before, err := keyring(t, public).Verify(message, epoch.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(public)*8; i += 3 { // each position in a byte, at every third one
		m := bytes.Clone(public)
		m[i/8] ^= 1 << (i % 8)
		k, err := openpgp.ParseKeyring(m)
		if err != nil {
			continue
		}
		got, err := k.Verify(message, epoch.Add(time.Hour))
		if err == nil && got.Fingerprint != before.Fingerprint {
			t.Errorf("bit %d: another key: %+v", i, got)
		}
	}
}
