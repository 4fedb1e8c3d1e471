package pkcs11

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/kek/cryptoki"
)

// broken is a token that has one key and answers with what the test says. Its
// "encryption" keeps the rules: it is inverted and has a tag of zeros.
type broken struct {
	cryptoki.Session
	encrypt     func(iv, plain []byte) ([]byte, []byte, error)
	decrypt     func(sealed []byte) ([]byte, error)
	attributes  [][]byte
	noMechanism bool
}

func (b broken) Label() string { return "broken" }
func (b broken) Do(ctx context.Context, f func(context.Context, cryptoki.Session) error) error {
	return f(ctx, b)
}
func (b broken) Find([]cryptoki.Attribute, int) ([]cryptoki.Object, error) {
	return []cryptoki.Object{1}, nil
}

func (b broken) Mechanism(uint) (uint, error) {
	if b.noMechanism {
		return 0, nil
	}
	return cryptoki.CanEncrypt | cryptoki.CanDecrypt, nil
}

func (b broken) Attributes(cryptoki.Object, ...uint) ([][]byte, error) {
	if b.attributes != nil {
		return b.attributes, nil
	}
	return [][]byte{binary.NativeEndian.AppendUint64(nil, 32), {1}}, nil
}

func invert(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = ^b[i]
	}
	return out
}

func (b broken) EncryptGCM(_ cryptoki.Object, iv, _, plain []byte) ([]byte, []byte, error) {
	if b.encrypt != nil {
		return b.encrypt(iv, plain)
	}
	return append(invert(plain), make([]byte, tagSize)...), iv, nil
}

func (b broken) DecryptGCM(_ cryptoki.Object, _, _, sealed []byte) ([]byte, error) {
	if b.decrypt != nil {
		return b.decrypt(sealed)
	}
	return invert(sealed[:len(sealed)-tagSize]), nil
}

func TestBrokenToken(t *testing.T) {
	t.Parallel()
	if _, err := Open(t.Context(), broken{}, Options{Key: "kek"}); err != nil {
		t.Fatalf("a token that keeps the rules: %v", err)
	}
	for name, b := range map[string]broken{
		"returns the key in the clear": {
			encrypt: func(iv, plain []byte) ([]byte, []byte, error) {
				return append(bytes.Clone(plain), make([]byte, tagSize)...), iv, nil
			},
			decrypt: func(sealed []byte) ([]byte, error) { return sealed[:len(sealed)-tagSize], nil },
		},
		"no tag":                   {encrypt: func(iv, plain []byte) ([]byte, []byte, error) { return invert(plain), iv, nil }},
		"nothing":                  {encrypt: func(iv, _ []byte) ([]byte, []byte, error) { return nil, iv, nil }},
		"no initialization vector": {encrypt: func(_, plain []byte) ([]byte, []byte, error) { return make([]byte, len(plain)+tagSize), nil, nil }},
		"too much":                 {encrypt: func(iv, _ []byte) ([]byte, []byte, error) { return make([]byte, 1<<20), iv, nil }},
		"another key back":         {decrypt: func([]byte) ([]byte, error) { return make([]byte, 32), nil }},
		"nothing back":             {decrypt: func([]byte) ([]byte, error) { return nil, nil }},
		"an error back":            {decrypt: func([]byte) ([]byte, error) { return nil, cryptoki.GeneralError }},
		"no attributes":            {attributes: [][]byte{}},
		"empty attributes":         {attributes: [][]byte{nil, nil}},
		"odd length":               {attributes: [][]byte{{32}, {1}}},
		"no mechanism":             {noMechanism: true},
	} {
		if _, err := Open(t.Context(), b, Options{Key: "kek"}); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	// A token that begins to fail later says so, by its own code.
	k, err := Open(t.Context(), broken{}, Options{Key: "kek"})
	if err != nil {
		t.Fatal(err)
	}
	k.token = broken{decrypt: func([]byte) ([]byte, error) { return nil, cryptoki.DeviceRemoved }}
	if _, err := k.Unwrap(t.Context(), append([]byte{formatGCM}, make([]byte, 60)...)); !errors.Is(err, cryptoki.DeviceRemoved) {
		t.Errorf("got %v", err)
	}
}

// What is unwrapped comes from the database: any bytes are an error, or a key.
func FuzzUnwrap(f *testing.F) {
	f.Add([]byte{formatGCM})
	f.Add(append([]byte{formatGCM}, make([]byte, 60)...))
	f.Add(append([]byte{9}, make([]byte, 60)...))
	k, err := Open(f.Context(), broken{}, Options{Key: "kek"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, wrapped []byte) {
		if len(wrapped) > 0 && wrapped[0] == formatKWP {
			return // needs a real token
		}
		if key, err := k.Unwrap(t.Context(), wrapped); (err == nil) != (key.Len() > 0) {
			t.Errorf("%x: got %d bytes, %v", wrapped, key.Len(), err)
		}
	})
}
