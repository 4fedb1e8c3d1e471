package crypt_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/secret"
)

// wrapper is the key provider "attestation-agent" for ocicrypt, in-process. It
// wraps with our packets, so that both directions use the real annotations.
type wrapper struct{ key string }

func (w wrapper) WrapKeys(_ *config.EncryptConfig, private []byte) ([]byte, error) {
	return encrypt.Wrap(private, encrypt.Recipient{KID: kid, Key: secret.New([]byte(w.key))}, zeroReader{})
}

func (w wrapper) UnwrapKey(_ *config.DecryptConfig, annotation []byte) ([]byte, error) {
	p, err := crypt.ParsePacket(annotation)
	if err != nil {
		return nil, err
	}
	plain, err := p.Unwrap(secret.New([]byte(w.key)))
	return plain.Expose(), err
}

func (wrapper) GetAnnotationID() string                      { return crypt.AnnotationKeys }
func (wrapper) NoPossibleKeys(map[string][][]byte) bool      { return false }
func (wrapper) GetPrivateKeys(map[string][][]byte) [][]byte  { return nil }
func (wrapper) GetKeyIdsFromPacket(string) ([]uint64, error) { return nil, nil }
func (wrapper) GetRecipients(string) ([]string, error)       { return nil, nil }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Layers that ocicrypt encrypts can be opened, and it opens ours.
func TestOCICrypt(t *testing.T) { // not parallel: ocicrypt's registration is global
	key := randomKey(t)
	ocicrypt.RegisterKeyWrapper("provider.attestation-agent", wrapper{key})
	plain := []byte(strings.Repeat("a layer, not empty. ", 50_000))
	desc := ocispec.Descriptor{Digest: digest.FromBytes(plain), Size: int64(len(plain)), MediaType: ocispec.MediaTypeImageLayerGzip}

	t.Run("theirs", func(t *testing.T) {
		ec := &config.EncryptConfig{Parameters: map[string][][]byte{"attestation-agent": {[]byte("x")}}}
		r, finish, err := ocicrypt.EncryptLayer(ec, bytes.NewReader(plain), desc)
		if err != nil {
			t.Fatal(err)
		}
		ciphertext, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		annotations, err := finish()
		if err != nil {
			t.Fatal(err)
		}
		got, err := open(t.Context(), ciphertext, annotations, keyMap{kid: key})
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("not opened: %v", err)
		}
		ciphertext[100] ^= 1
		if _, err := open(t.Context(), ciphertext, annotations, keyMap{kid: key}); !errors.Is(err, crypt.ErrMAC) {
			t.Errorf("changed: want ErrMAC, got %v", err)
		}
	})
	t.Run("ours", func(t *testing.T) {
		ciphertext, annotations := seal(t, plain, encrypt.Recipient{KID: kid, Key: secret.New([]byte(key))})
		desc := desc
		desc.MediaType, desc.Annotations = ocispec.MediaTypeImageLayerGzip+"+encrypted", annotations
		dc := &config.DecryptConfig{Parameters: map[string][][]byte{}}
		r, _, err := ocicrypt.DecryptLayer(dc, bytes.NewReader(ciphertext), desc, false)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("not opened: %v", err)
		}
		packet, _ := base64.StdEncoding.DecodeString(annotations[crypt.AnnotationKeys])
		private, err := wrapper{key}.UnwrapKey(nil, packet)
		if err != nil || !bytes.Contains(private, []byte(`"digest":"`+desc.Digest.String()+`"`)) {
			t.Errorf("the private options do not hold the digest %s: %v", desc.Digest, err)
		}
	})
}
