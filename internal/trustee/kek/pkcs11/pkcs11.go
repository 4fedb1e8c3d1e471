// Package pkcs11 wraps data keys under an AES key that never leaves a PKCS#11
// token. It needs a program built with cgo, see package cryptoki.
package pkcs11

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/coffer-project/coffer/internal/trustee/kek/cryptoki"
	"github.com/coffer-project/coffer/secret"
)

// Mechanism is how the token wraps.
type Mechanism string

// The mechanisms; both authenticate what they wrap.
const (
	// Auto takes the first of the others that the token offers.
	Auto Mechanism = ""
	// GCM is CKM_AES_GCM.
	GCM Mechanism = "aes-gcm"
	// KeyWrapPad is CKM_AES_KEY_WRAP_PAD, RFC 5649.
	KeyWrapPad Mechanism = "aes-key-wrap-pad"
)

// A wrapped key begins with a byte that names its format: formatGCM is followed
// by a 12-byte initialization vector, the ciphertext and a 16-byte tag,
// formatKWP by what RFC 5649 makes of the key.
const (
	formatGCM = 1
	formatKWP = 2

	ivSize, tagSize = 12, 16
	// aad keeps what others encrypted under the same key from being taken for a
	// data key of ours.
	aad = "coffer-trustee/data-key/v1"

	maxKey     = 512
	maxWrapped = 1024
	aesKeySize = 32
	maxLabel   = 128
)

// Token lends sessions; [cryptoki.Token] implements it.
type Token interface {
	Label() string
	Do(ctx context.Context, f func(context.Context, cryptoki.Session) error) error
}

// Options of [Open].
type Options struct {
	// Key is the label of the AES-256 key in the token.
	Key string
	// Create makes the key where it is missing. Start one trustee at a time
	// then: tokens do not keep two from creating one each.
	Create    bool
	Mechanism Mechanism
	// Rand makes initialization vectors; nil stands for crypto/rand.
	Rand io.Reader
}

// KEK is a key-encryption key in a token. It is safe for concurrent use.
type KEK struct {
	o     Options
	token Token
}

// Open finds the key, or creates it, checks that it may be used and that its
// value cannot be read, and wraps and unwraps a random key once.
func Open(ctx context.Context, token Token, o Options) (*KEK, error) {
	if o.Key == "" || len(o.Key) > maxLabel {
		return nil, fmt.Errorf("PKCS#11 key: expected a label of 1 to %d bytes, got %.200q", maxLabel, o.Key)
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	k := &KEK{o, token}
	err := token.Do(ctx, func(ctx context.Context, s cryptoki.Session) error {
		if _, err := k.find(s); err == nil || !o.Create || !errors.Is(err, errNoKey) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return k.create(s)
	})
	if err == nil {
		err = token.Do(ctx, func(_ context.Context, s cryptoki.Session) error { return k.check(s) })
	}
	if err == nil {
		err = k.try(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("PKCS#11 key %q: %w", o.Key, err)
	}
	return k, nil
}

// ID names the token and the key by their labels.
func (k *KEK) ID() string { return "pkcs11:" + k.token.Label() + "/" + k.o.Key }

var (
	errNoKey = errors.New("no AES key of that label is in the token")
	errLies  = errors.New("the token does not unwrap what it has wrapped: do not use it")
)

// find returns the key. Handles are good for one session at most, so it is
// looked for each time; keys are wrapped once in a while.
func (k *KEK) find(s cryptoki.Session) (cryptoki.Object, error) {
	const several = 16
	found, err := s.Find(k.template(), several)
	switch {
	case err != nil:
		return 0, fmt.Errorf("look for the key: %w", err)
	case len(found) == 0:
		return 0, errNoKey
	case len(found) > 1:
		return 0, fmt.Errorf("expected one AES key of that label, got %d: delete or rename all but the one that the data was wrapped under", len(found))
	}
	return found[0], nil
}

func (k *KEK) template() []cryptoki.Attribute {
	return []cryptoki.Attribute{
		{Type: cryptoki.AttrClass, Value: uint(cryptoki.ClassSecretKey)},
		{Type: cryptoki.AttrKeyType, Value: uint(cryptoki.KeyAES)},
		{Type: cryptoki.AttrToken, Value: true},
		{Type: cryptoki.AttrLabel, Value: []byte(k.o.Key)},
	}
}

func (k *KEK) create(s cryptoki.Session) error {
	made, err := s.GenerateKey(cryptoki.MechAESKeyGen, append(k.template(), []cryptoki.Attribute{
		{Type: cryptoki.AttrPrivate, Value: true},
		{Type: cryptoki.AttrValueLen, Value: uint(aesKeySize)},
		{Type: cryptoki.AttrSensitive, Value: true},
		{Type: cryptoki.AttrExtractable, Value: false},
		{Type: cryptoki.AttrModifiable, Value: false},
		{Type: cryptoki.AttrEncrypt, Value: true},
		{Type: cryptoki.AttrDecrypt, Value: true},
		{Type: cryptoki.AttrWrap, Value: true},
		{Type: cryptoki.AttrUnwrap, Value: true},
	}...))
	if err != nil {
		return fmt.Errorf("create the key: %w", err)
	}
	if _, err := k.find(s); err != nil {
		// Another trustee created one at the same time, and may use it already.
		return fmt.Errorf("start again: after creating the key: %w", errors.Join(err, s.Destroy(made)))
	}
	return nil
}

// check refuses a key that would be weak or that could be read out.
func (k *KEK) check(s cryptoki.Session) error {
	o, err := k.find(s)
	if err != nil {
		return err
	}
	values, err := s.Attributes(o, cryptoki.AttrValueLen, cryptoki.AttrSensitive)
	if err != nil {
		return fmt.Errorf("read the key's attributes: %w", err)
	}
	if len(values) != 2 || len(values[1]) != 1 || values[1][0] == 0 {
		return errors.New("expected a key with CKA_SENSITIVE true: anybody with the PIN could read this one's value; create a new key")
	}
	if n, ok := number(values[0]); !ok || n != aesKeySize {
		return fmt.Errorf("expected an AES key of %d bytes (CKA_VALUE_LEN), got %x", aesKeySize, values[0])
	}
	return nil
}

// number reads a CK_ULONG, which has the machine's size and byte order.
func number(b []byte) (uint64, bool) {
	switch len(b) {
	case 4:
		return uint64(binary.NativeEndian.Uint32(b)), true
	case 8:
		return binary.NativeEndian.Uint64(b), true
	}
	return 0, false
}

// try wraps a random key, which includes unwrapping it.
func (k *KEK) try(ctx context.Context) error {
	key := secret.New(make([]byte, aesKeySize))
	defer key.Clear()
	if _, err := io.ReadFull(k.o.Rand, key.Expose()); err != nil {
		return fmt.Errorf("random numbers: %w", err)
	}
	_, err := k.Wrap(ctx, key)
	return err
}

// Wrap encrypts a data key of 1 to 512 bytes, and proves by decrypting it again
// that it will not be lost.
func (k *KEK) Wrap(ctx context.Context, key secret.Bytes) ([]byte, error) {
	if key.Len() < 1 || key.Len() > maxKey {
		return nil, fmt.Errorf("wrap: expected a key of 1 to %d bytes, got %d", maxKey, key.Len())
	}
	// The caller may clear its own while the token still works on it.
	plain := secret.New(bytes.Clone(key.Expose()))
	var iv [ivSize]byte
	if _, err := io.ReadFull(k.o.Rand, iv[:]); err != nil {
		return nil, fmt.Errorf("wrap: random numbers: %w", err)
	}
	result := make(chan []byte, 2) // f may be called twice
	err := k.token.Do(ctx, func(_ context.Context, s cryptoki.Session) error {
		wrapped, err := k.wrap(s, iv[:], plain)
		if err == nil {
			result <- wrapped
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wrap with %s: %w", k.ID(), err)
	}
	wrapped := <-result
	back, err := k.Unwrap(ctx, wrapped)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLies, err)
	}
	defer back.Clear()
	if !back.Equal(key) || bytes.Contains(wrapped, key.Expose()) && key.Len() >= tagSize {
		return nil, errLies
	}
	return wrapped, nil
}

func (k *KEK) wrap(s cryptoki.Session, iv []byte, key secret.Bytes) ([]byte, error) {
	o, err := k.find(s)
	if err != nil {
		return nil, err
	}
	m, err := k.mechanism(s)
	if err != nil {
		return nil, err
	}
	if m == KeyWrapPad {
		return wrapPad(s, o, key)
	}
	sealed, usedIV, err := s.EncryptGCM(o, iv, []byte(aad), key.Expose())
	if err != nil {
		return nil, err
	}
	if len(usedIV) != ivSize || len(sealed) != key.Len()+tagSize {
		return nil, fmt.Errorf("expected a %d-byte initialization vector and %d bytes of ciphertext, got %d and %d", ivSize, key.Len()+tagSize, len(usedIV), len(sealed))
	}
	return append(append([]byte{formatGCM}, usedIV...), sealed...), nil
}

// mechanism chooses by what the token offers.
func (k *KEK) mechanism(s cryptoki.Session) (Mechanism, error) {
	for _, m := range []struct {
		name        Mechanism
		code, flags uint
	}{
		{GCM, cryptoki.MechAESGCM, cryptoki.CanEncrypt | cryptoki.CanDecrypt},
		{KeyWrapPad, cryptoki.MechAESKeyWrapPad, cryptoki.CanWrap | cryptoki.CanUnwrap},
	} {
		if k.o.Mechanism != Auto && k.o.Mechanism != m.name {
			continue
		}
		flags, err := s.Mechanism(m.code)
		if err != nil {
			return "", fmt.Errorf("ask for mechanism %s: %w", m.name, err)
		}
		if flags&m.flags == m.flags {
			return m.name, nil
		}
	}
	if k.o.Mechanism != Auto {
		return "", fmt.Errorf("the token has no mechanism %q", k.o.Mechanism)
	}
	return "", fmt.Errorf("the token has neither of the mechanisms %q and %q", GCM, KeyWrapPad)
}

// Unwrap decrypts what Wrap returned. The mechanism is that of the wrapped key,
// whatever the options say now.
func (k *KEK) Unwrap(ctx context.Context, wrapped []byte) (secret.Bytes, error) {
	least := 1 + ivSize + tagSize + 1
	if len(wrapped) > 0 && wrapped[0] == formatKWP {
		least = 1 + 16
	}
	if len(wrapped) < least || len(wrapped) > maxWrapped {
		return secret.Bytes{}, fmt.Errorf("unwrap with %s: expected at most %d bytes of a wrapped key, got %d", k.ID(), maxWrapped, len(wrapped))
	}
	wrapped = bytes.Clone(wrapped)
	result := make(chan secret.Bytes, 2)
	err := k.token.Do(ctx, func(_ context.Context, s cryptoki.Session) error {
		key, err := k.unwrap(s, wrapped)
		if err == nil {
			result <- key
		}
		return err
	})
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("unwrap with %s: %w", k.ID(), err)
	}
	key := <-result
	if key.Len() < 1 || key.Len() > maxKey {
		key.Clear()
		return secret.Bytes{}, fmt.Errorf("unwrap with %s: expected a key of 1 to %d bytes, got %d", k.ID(), maxKey, key.Len())
	}
	return key, nil
}

func (k *KEK) unwrap(s cryptoki.Session, wrapped []byte) (secret.Bytes, error) {
	o, err := k.find(s)
	if err != nil {
		return secret.Bytes{}, err
	}
	switch body := wrapped[1:]; wrapped[0] {
	case formatGCM:
		plain, err := s.DecryptGCM(o, body[:ivSize], []byte(aad), body[ivSize:])
		return secret.New(plain), err
	case formatKWP:
		return unwrapPad(s, o, body)
	}
	return secret.Bytes{}, fmt.Errorf("expected a key in format %d or %d, got %d: was it wrapped by another kind of key?", formatGCM, formatKWP, wrapped[0])
}
