// Package encrypt makes encrypted image layers that package crypt, image-rs
// and ocicrypt with a key provider open. Only owners' programs use it, never
// the guest.
package encrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/secret"
)

// Recipient is whom layers are encrypted for: whoever may read the KBS resource
// KID, whose content is Key.
type Recipient struct {
	// KID is kbs://[HOST]/REPOSITORY/TYPE/TAG.
	KID string
	// Key is the key-encryption key, 32 bytes.
	Key secret.Bytes
}

// Check says whether a guest could use the recipient's key.
func (r Recipient) Check() error {
	rest, ok := strings.CutPrefix(r.KID, "kbs://")
	_, path, slash := strings.Cut(rest, "/")
	if !ok || !slash || strings.Count(path, "/") != 2 || strings.Contains("/"+path+"/", "//") {
		return fmt.Errorf("key id %q: expected kbs:///REPOSITORY/TYPE/TAG", r.KID)
	}
	if r.Key.Len() != crypt.KeySize {
		return fmt.Errorf("key %s: expected %d bytes, got %d", r.KID, crypt.KeySize, r.Key.Len())
	}
	return nil
}

// Layer is a layer that is being encrypted: read the ciphertext from it to its
// end, then ask for the annotations. It is for one goroutine.
type Layer struct {
	plain  io.Reader
	stream cipher.Stream
	mac    hash.Hash
	digest hash.Hash
	key    secret.Bytes
	nonce  []byte
	rand   io.Reader
	ended  bool
}

// NewLayer encrypts plain, a layer as it would be stored otherwise, under a
// fresh key. rand is crypto/rand.Reader outside of tests.
func NewLayer(plain io.Reader, rand io.Reader) (*Layer, error) {
	random := make([]byte, crypt.KeySize+crypt.NonceSize)
	if _, err := io.ReadFull(rand, random); err != nil {
		return nil, fmt.Errorf("random layer key: %w", err)
	}
	key, nonce := random[:crypt.KeySize:crypt.KeySize], random[crypt.KeySize:]
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return &Layer{
		plain: plain, stream: cipher.NewCTR(block, nonce), mac: hmac.New(sha256.New, key), digest: sha256.New(),
		key: secret.New(key), nonce: nonce, rand: rand,
	}, nil
}

// Read implements io.Reader.
func (l *Layer) Read(p []byte) (int, error) {
	n, err := l.plain.Read(p)
	_, _ = l.digest.Write(p[:n])
	l.stream.XORKeyStream(p[:n], p[:n])
	_, _ = l.mac.Write(p[:n])
	l.ended = l.ended || err == io.EOF
	return n, err
}

// Annotations are those of the encrypted layer's descriptor: the layer's key,
// wrapped for each of the recipients, and the MAC.
func (l *Layer) Annotations(recipients ...Recipient) (map[string]string, error) {
	if !l.ended {
		return nil, fmt.Errorf("the layer has not been read to its end")
	}
	if len(recipients) == 0 {
		return nil, fmt.Errorf("expected at least one recipient")
	}
	private, err := json.Marshal(crypt.PrivateOptions{
		SymmetricKey:  l.key.Expose(),
		Digest:        string(oci.FromHash(l.digest)),
		CipherOptions: map[string][]byte{"nonce": l.nonce},
	})
	if err != nil {
		return nil, err
	}
	defer clear(private)
	packets := make([]string, len(recipients))
	for i, r := range recipients {
		if packets[i], err = wrap(private, r, l.rand); err != nil {
			return nil, err
		}
	}
	public, err := json.Marshal(crypt.PublicOptions{Cipher: crypt.Cipher, HMAC: l.mac.Sum(nil), CipherOptions: map[string][]byte{}})
	if err != nil {
		return nil, err
	}
	return map[string]string{
		crypt.AnnotationKeys:    strings.Join(packets, ","),
		crypt.AnnotationPubOpts: base64.StdEncoding.EncodeToString(public),
	}, nil
}

// Clear overwrites the layer's key.
func (l *Layer) Clear() { l.key.Clear() }

// Wrap makes the key packet of private options, as JSON: version 1 of the
// format, which every reader knows.
func Wrap(private []byte, r Recipient, rand io.Reader) ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(r.Key.Expose())
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, aead.NonceSize())
	if _, err := io.ReadFull(rand, iv); err != nil {
		return nil, fmt.Errorf("random IV: %w", err)
	}
	return json.Marshal(crypt.Packet{KID: r.KID, WrappedData: aead.Seal(nil, iv, private, nil), IV: iv, WrapType: crypt.WrapGCM})
}

func wrap(private []byte, r Recipient, rand io.Reader) (string, error) {
	packet, err := Wrap(private, r, rand)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(packet), nil
}
