// Package transit wraps data keys with the transit engine of an OpenBao or
// HashiCorp Vault server: the key-encryption key never leaves the server.
package transit

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/kek/bao"
	"github.com/coffer-project/coffer/secret"
)

const (
	maxKey     = 512
	maxWrapped = 8 << 10
	keySize    = 32
	// aad keeps what others encrypted under the same key from being taken for a
	// data key of ours. Only authenticated encryption has associated data: the
	// server refuses it for keys of other types.
	aad = "coffer-trustee/data-key/v1"
)

// Server sends requests; [bao.Client] implements it.
type Server interface {
	Do(ctx context.Context, r bao.Request, out any) error
}

// Options of [Open].
type Options struct {
	// Mount is where the engine is, "" for "transit".
	Mount string
	// Key is the key's name. It must be there: an engine creates keys that it is
	// asked to encrypt with where the policy allows, also for a misspelt name.
	Key string
	// Scope is put into the key's ID, to tell servers or namespaces apart.
	Scope string
	Rand  io.Reader
}

// KEK is a key-encryption key in a transit engine. It is safe for concurrent
// use.
type KEK struct {
	o      Options
	server Server
}

// Open looks at the key, and wraps and unwraps a random key once.
func Open(ctx context.Context, server Server, o Options) (*KEK, error) {
	if o.Mount == "" {
		o.Mount = "transit"
	}
	if err := bao.CheckPath(o.Mount); err != nil {
		return nil, fmt.Errorf("transit mount: %w", err)
	}
	if err := bao.CheckPath(o.Key); err != nil || strings.Contains(o.Key, "/") {
		return nil, fmt.Errorf("transit key: expected a name of A-Z a-z 0-9 . _ -, got %.200q", o.Key)
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	k := &KEK{o, server}
	err := k.check(ctx)
	if err == nil {
		err = k.try(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", k.ID(), err)
	}
	return k, nil
}

// ID is "transit:[SCOPE/]MOUNT/KEY". Versions of the key within the engine are
// told apart by what it wrapped.
func (k *KEK) ID() string {
	parts := slices.DeleteFunc([]string{k.o.Scope, k.o.Mount, k.o.Key}, func(s string) bool { return s == "" })
	return "transit:" + strings.Join(parts, "/")
}

// check refuses a key that is missing or cannot do what we need. Policies need
// not allow it: then the attempt to wrap decides.
func (k *KEK) check(ctx context.Context) error {
	var key struct {
		Type    string `json:"type"`
		Derived bool   `json:"derived"`
	}
	err := k.server.Do(ctx, bao.Request{Method: http.MethodGet, Path: k.o.Mount + "/keys/" + k.o.Key, Repeat: true}, &key)
	switch {
	case errors.Is(err, bao.ErrDenied):
		return nil
	case errors.Is(err, bao.ErrNotFound):
		return fmt.Errorf("%w: create it, for instance with: bao write -f %s/keys/%s", err, k.o.Mount, k.o.Key)
	case err != nil:
		return err
	}
	aead := []string{"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}
	if !slices.Contains(aead, key.Type) {
		return fmt.Errorf("expected a key of a type with authentication (%s), got %.40q", strings.Join(aead, ", "), key.Type)
	}
	if key.Derived {
		return errors.New("expected a key that is not derived, got one that needs a context: create another")
	}
	return nil
}

func (k *KEK) try(ctx context.Context) error {
	key := secret.New(make([]byte, keySize))
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
	var out struct {
		Ciphertext string `json:"ciphertext"`
	}
	plain := base64.StdEncoding.EncodeToString(key.Expose())
	err := k.server.Do(ctx, bao.Request{
		Method: http.MethodPost, Path: k.o.Mount + "/encrypt/" + k.o.Key, Repeat: true,
		Body: map[string]string{"plaintext": plain, "associated_data": base64.StdEncoding.EncodeToString([]byte(aad))},
	}, &out)
	if err != nil {
		return nil, fmt.Errorf("wrap with %s: %w", k.ID(), err)
	}
	if !wellFormed(out.Ciphertext) || key.Len() >= keySize && strings.Contains(out.Ciphertext, plain) {
		return nil, fmt.Errorf("wrap with %s: expected a ciphertext of the form PREFIX:vN:BASE64 from the server", k.ID())
	}
	back, err := k.Unwrap(ctx, []byte(out.Ciphertext))
	if err != nil {
		return nil, fmt.Errorf("the server does not unwrap what it has wrapped: %w", err)
	}
	defer back.Clear()
	if !back.Equal(key) {
		return nil, errors.New("the server does not unwrap what it has wrapped: do not use it")
	}
	return []byte(out.Ciphertext), nil
}

// wellFormed: "vault:v1:…" or, from forks, another prefix.
func wellFormed(ciphertext string) bool {
	prefix, rest, ok := strings.Cut(ciphertext, ":v")
	number, body, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || len(ciphertext) > maxWrapped || prefix == "" || len(prefix) > 32 || number == "" || len(number) > 9 {
		return false
	}
	for _, r := range number {
		if r < '0' || r > '9' {
			return false
		}
	}
	raw, err := base64.StdEncoding.DecodeString(body)
	// A nonce of 12 bytes, a tag of 16, and something in between.
	return err == nil && len(raw) > 28 && !strings.ContainsFunc(prefix, func(r rune) bool { return r != '-' && (r < 'a' || r > 'z') })
}

// Unwrap decrypts what Wrap returned.
func (k *KEK) Unwrap(ctx context.Context, wrapped []byte) (secret.Bytes, error) {
	if !wellFormed(string(wrapped)) {
		return secret.Bytes{}, fmt.Errorf("unwrap with %s: expected at most %d bytes of the form PREFIX:vN:BASE64, got %d bytes of another form: were they wrapped by another kind of key?", k.ID(), maxWrapped, len(wrapped))
	}
	var out struct {
		Plaintext []byte `json:"plaintext"`
	}
	err := k.server.Do(ctx, bao.Request{
		Method: http.MethodPost, Path: k.o.Mount + "/decrypt/" + k.o.Key, Repeat: true,
		Body: map[string]string{"ciphertext": string(wrapped), "associated_data": base64.StdEncoding.EncodeToString([]byte(aad))},
	}, &out)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("unwrap with %s: %w", k.ID(), err)
	}
	key := secret.New(out.Plaintext)
	if key.Len() < 1 || key.Len() > maxKey {
		key.Clear()
		return secret.Bytes{}, fmt.Errorf("unwrap with %s: expected a key of 1 to %d bytes, got %d", k.ID(), maxKey, key.Len())
	}
	return key, nil
}
