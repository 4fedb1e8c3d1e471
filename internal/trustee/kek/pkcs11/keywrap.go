package pkcs11

import (
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/trustee/kek/cryptoki"
	"github.com/coffer-project/coffer/secret"
)

// CKM_AES_KEY_WRAP_PAD wraps objects, not bytes: the data key becomes an object
// of the session for as long as that takes.

func wrapPad(s cryptoki.Session, wrapping cryptoki.Object, key secret.Bytes) (_ []byte, err error) {
	if key.Len()%8 != 0 {
		// SoftHSM 2.6 does not take off the padding again.
		return nil, fmt.Errorf("%s: expected a key of a multiple of 8 bytes, got %d", KeyWrapPad, key.Len())
	}
	o, err := s.Create([]cryptoki.Attribute{
		{Type: cryptoki.AttrClass, Value: uint(cryptoki.ClassSecretKey)},
		{Type: cryptoki.AttrKeyType, Value: uint(cryptoki.KeyGenericSecret)},
		{Type: cryptoki.AttrToken, Value: false},
		{Type: cryptoki.AttrSensitive, Value: false},
		{Type: cryptoki.AttrExtractable, Value: true},
		{Type: cryptoki.AttrValue, Value: key.Expose()},
	})
	if err != nil {
		return nil, fmt.Errorf("import the data key: %w", err)
	}
	defer func() { err = errors.Join(err, s.Destroy(o)) }()
	wrapped, err := s.WrapKey(cryptoki.MechAESKeyWrapPad, wrapping, o)
	if err != nil {
		return nil, err
	}
	// RFC 5649, section 4.1: 8 bytes more.
	if want := key.Len() + 8; len(wrapped) != want {
		return nil, fmt.Errorf("expected %d bytes of a wrapped key, got %d", want, len(wrapped))
	}
	return append([]byte{formatKWP}, wrapped...), nil
}

func unwrapPad(s cryptoki.Session, wrapping cryptoki.Object, wrapped []byte) (_ secret.Bytes, err error) {
	o, err := s.UnwrapKey(cryptoki.MechAESKeyWrapPad, wrapping, wrapped, []cryptoki.Attribute{
		{Type: cryptoki.AttrClass, Value: uint(cryptoki.ClassSecretKey)},
		{Type: cryptoki.AttrKeyType, Value: uint(cryptoki.KeyGenericSecret)},
		{Type: cryptoki.AttrToken, Value: false},
		{Type: cryptoki.AttrSensitive, Value: false},
		{Type: cryptoki.AttrExtractable, Value: true},
	})
	if err != nil {
		return secret.Bytes{}, err
	}
	defer func() { err = errors.Join(err, s.Destroy(o)) }()
	values, err := s.Attributes(o, cryptoki.AttrValue)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("read the data key: %w", err)
	}
	if len(values) != 1 {
		return secret.Bytes{}, fmt.Errorf("read the data key: expected 1 attribute, got %d", len(values))
	}
	return secret.New(values[0]), nil
}
