package keyprovider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/secret"
)

// key finds or makes the key that a caller's parameters mean, and sees to it
// that the trustee has it before anything is wrapped under it.
func (p *Provider) key(ctx context.Context, a params) (string, secret.Bytes, error) {
	var none secret.Bytes
	given, isGiven := p.o.Keys[a.keyID]
	if p.o.Registrar == nil {
		if !a.hasID {
			return "", none, errors.New("parameters: keyid: missing; without a trustee to register keys in, nobody would know an id that is made up")
		}
		if !a.hasKeyArg && !isGiven {
			return "", none, fmt.Errorf("parameters: keypath: missing; without a trustee to register keys in, a new key for %s would be lost", a.keyID)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !a.hasID {
		id, err := p.newID()
		if err != nil {
			return "", none, err
		}
		a.keyID = id
	}
	known, isKnown := p.keys[a.keyID]
	key, err := p.readKey(a, given, known)
	if err != nil {
		return "", none, err
	}
	switch {
	case isGiven && !key.Equal(given):
		return "", none, fmt.Errorf("parameters: keypath: another key than the key provider was given for %s", a.keyID)
	case isKnown && !key.Equal(known):
		return "", none, fmt.Errorf("parameters: keypath: another key than was used for %s before; images that need the old one would become unreadable: take another keyid, or start the key provider again", a.keyID)
	case isKnown:
		return a.keyID, key, nil
	case len(p.keys) >= maxKeys:
		return "", none, fmt.Errorf("%d keys have been used, which is as many as are remembered; start the key provider again", maxKeys)
	}
	if p.o.Registrar != nil {
		uri, err := kbs.ParseResourceURI(a.keyID)
		if err != nil {
			return "", none, err
		}
		if err := p.register(ctx, uri, key, a.hasID && !a.hasKeyArg && !isGiven); err != nil {
			return "", none, err
		}
	}
	p.keys[a.keyID] = key
	return a.keyID, key, nil
}

// register puts a key into the trustee. One that was just made up must not take
// the place of another, which images may need.
func (p *Provider) register(ctx context.Context, uri kbs.ResourceURI, key secret.Bytes, madeUp bool) error {
	if madeUp {
		have, err := p.o.Registrar.ResourceVersions(ctx, uri)
		if refused, ok := errors.AsType[*kbs.StatusError](err); err != nil && (!ok || refused.Status != http.StatusNotFound) {
			return fmt.Errorf("ask the trustee for %s: %w", uri, err)
		}
		if len(have) > 0 {
			return fmt.Errorf("parameters: keypath: missing; the trustee has a key %s already, and a new one in its place would make images unreadable: name the key's file, or another keyid", uri)
		}
	}
	if err := p.o.Registrar.SetResource(ctx, uri, key); err != nil {
		return fmt.Errorf("put %s into the trustee: %w", uri, err)
	}
	p.o.Logger.Info("a key was put into the trustee", "key", uri)
	return nil
}

// readKey is the key in the caller's file, or else the one that was given or
// used for the id, or else a new one.
func (p *Provider) readKey(a params, given, known secret.Bytes) (secret.Bytes, error) {
	switch {
	case !a.hasKeyArg && given.Len() != 0:
		return given, nil
	case !a.hasKeyArg && known.Len() != 0:
		return known, nil
	case !a.hasKeyArg:
		key := make([]byte, crypt.KeySize)
		if _, err := io.ReadFull(p.o.Rand, key); err != nil {
			return secret.Bytes{}, fmt.Errorf("random key: %w", err)
		}
		return secret.New(key), nil
	case p.o.ReadKey == nil:
		return secret.Bytes{}, errors.New("parameters: keypath: this key provider reads no files of its callers")
	}
	key, err := p.o.ReadKey(a.keyPath)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("parameters: keypath: %w", err)
	}
	if len(key) != crypt.KeySize {
		clear(key)
		return secret.Bytes{}, fmt.Errorf("parameters: keypath: %.256q: expected %d bytes", a.keyPath, crypt.KeySize)
	}
	return secret.New(key), nil
}

// newID makes up an id the way coco_keyprovider does, with a random UUID
// (RFC 9562, version 4).
func (p *Provider) newID() (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(p.o.Rand, b[:]); err != nil {
		return "", fmt.Errorf("random key id: %w", err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("kbs:///default/image-kek/%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}
