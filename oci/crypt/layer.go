package crypt

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/secret"
)

// ErrMAC says that an encrypted layer is not what was encrypted.
var ErrMAC = errors.New("the layer's MAC does not match: the ciphertext was changed, or the key is another one")

// PublicOptions are the part of the encryption parameters that stands in the
// manifest in clear text (ocicrypt, blockcipher.PublicLayerBlockCipherOptions).
type PublicOptions struct {
	Cipher        string            `json:"cipher"`
	HMAC          []byte            `json:"hmac"`
	CipherOptions map[string][]byte `json:"cipheroptions"`
}

// PrivateOptions are the part that a key packet wraps.
type PrivateOptions struct {
	SymmetricKey []byte `json:"symkey"`
	// Digest is that of the layer before encryption. It is not checked: the
	// image configuration's diff ID says more.
	Digest        string            `json:"digest"`
	CipherOptions map[string][]byte `json:"cipheroptions"`
}

// Layer can check and decrypt one encrypted layer. It may be used by several
// goroutines at once.
type Layer struct {
	key   secret.Bytes
	nonce [NonceSize]byte
	mac   [MACSize]byte
}

// Unwrap reads the annotations of an encrypted layer's descriptor and gets the
// layer's key, asking keys for the key-encryption key.
func Unwrap(ctx context.Context, annotations map[string]string, keys KeySource) (*Layer, error) {
	pub, err := parsePublic(annotations[AnnotationPubOpts])
	if err != nil {
		return nil, err
	}
	packets, ok := annotations[AnnotationKeys]
	if !ok {
		return nil, missingKeys(annotations)
	}
	if keys == nil {
		return nil, errors.New("the layer is encrypted, and this pod has no source of keys: an unsealed pod cannot run encrypted images")
	}
	plain, err := unwrapAny(ctx, packets, keys)
	if err != nil {
		return nil, err
	}
	defer plain.Clear()
	l := &Layer{}
	copy(l.mac[:], pub.HMAC)
	if err := l.setPrivate(plain); err != nil {
		return nil, err
	}
	return l, nil
}

func parsePublic(annotation string) (*PublicOptions, error) {
	if annotation == "" {
		return nil, fmt.Errorf("annotation %s: missing from an encrypted layer", AnnotationPubOpts)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(annotation)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", AnnotationPubOpts, err)
	}
	pub := &PublicOptions{}
	if err := strictjson.Decode(raw, pub, strictjson.Limits{Bytes: maxPacketJSON, Depth: 4}); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", AnnotationPubOpts, err)
	}
	if pub.Cipher != Cipher {
		return nil, fmt.Errorf("annotation %s: cipher: expected %s, got %q", AnnotationPubOpts, Cipher, clip(pub.Cipher))
	}
	if len(pub.HMAC) != MACSize {
		return nil, fmt.Errorf("annotation %s: hmac: expected %d bytes, got %d", AnnotationPubOpts, MACSize, len(pub.HMAC))
	}
	return pub, nil
}

// missingKeys explains which keys a layer has instead.
func missingKeys(annotations map[string]string) error {
	var have []string
	for name := range annotations {
		if rest, ok := strings.CutPrefix(name, AnnotationKeysPrefix); ok {
			have = append(have, clip(rest))
		}
	}
	if len(have) == 0 {
		return fmt.Errorf("annotation %s: missing from an encrypted layer", AnnotationKeys)
	}
	slices.Sort(have)
	return fmt.Errorf("annotation %s: missing; the layer's key is wrapped by %s, which a guest cannot open: encrypt for the provider attestation-agent",
		AnnotationKeys, strings.Join(have, ", "))
}

// setPrivate reads the private options. Its errors never hold their content.
func (l *Layer) setPrivate(plain secret.Bytes) error {
	var private PrivateOptions
	if err := strictjson.Decode(plain.Expose(), &private, strictjson.Limits{Bytes: maxPacketJSON, Depth: 4}); err != nil {
		return errors.New("key packet: what it wraps is not the private options of a layer: the key is another one, or the packet was changed")
	}
	if len(private.SymmetricKey) != KeySize {
		return fmt.Errorf("key packet: symkey: expected %d bytes, got %d", KeySize, len(private.SymmetricKey))
	}
	nonce := private.CipherOptions["nonce"]
	if len(nonce) != NonceSize {
		return fmt.Errorf("key packet: cipheroptions.nonce: expected %d bytes, got %d", NonceSize, len(nonce))
	}
	l.key = secret.New(private.SymmetricKey)
	copy(l.nonce[:], nonce)
	return nil
}

// Clear overwrites the key. The layer cannot be used afterwards.
func (l *Layer) Clear() { l.key.Clear() }

// Open checks the whole of ciphertext and, only if its MAC is right, returns
// its plaintext. It reads ciphertext twice, from the start; it must give the
// same bytes both times.
func (l *Layer) Open(ciphertext io.ReadSeeker) (io.Reader, error) {
	if _, err := ciphertext.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	mac := l.authenticate(ciphertext)
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, mac, make([]byte, 256<<10)); err != nil {
		return nil, err
	}
	if _, err := ciphertext.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	stream, err := l.stream()
	if err != nil {
		return nil, err
	}
	return cipher.StreamReader{S: stream, R: ciphertext}, nil
}

func (l *Layer) stream() (cipher.Stream, error) {
	block, err := aes.NewCipher(l.key.Expose())
	if err != nil {
		return nil, err
	}
	return cipher.NewCTR(block, l.nonce[:]), nil
}

// authenticate passes ciphertext through and puts [ErrMAC] in the place of
// io.EOF unless the MAC of everything is right.
func (l *Layer) authenticate(ciphertext io.Reader) io.Reader {
	return &authenticator{r: ciphertext, mac: hmac.New(sha256.New, l.key.Expose()), want: l.mac[:]}
}

type authenticator struct {
	r    io.Reader
	mac  hash.Hash
	want []byte
}

func (a *authenticator) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	_, _ = a.mac.Write(p[:n])
	if err == io.EOF && !hmac.Equal(a.mac.Sum(nil), a.want) {
		err = ErrMAC
	}
	return n, err
}
