package sealed

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/coffer-project/coffer/secret"
)

// KeySize is the size of the keys that envelopes are made with, in bytes: of
// the one that encrypts the data, and of the key broker's that encrypts that.
const KeySize = 32

const (
	gcmNonce = 12
	gcmTag   = 16
)

// kbsAnnotations are those of an envelope of the key broker: the nonce with
// which its key was encrypted.
type kbsAnnotations struct {
	IV string `json:"iv"`
}

// std is the base64 of JSON members in payloads.
func std(name, text string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("sealed secret: payload.%s: expected padded base64", name)
	}
	return b, nil
}

// EncryptData makes the data of an envelope: it draws a key and a nonce and
// sets EncryptedData, IV and Wrap. The key is the caller's to have encrypted by
// the provider, and to clear.
func (p *Payload) EncryptData(rand io.Reader, plaintext secret.Bytes, wrap Wrap) (secret.Bytes, error) {
	key := make([]byte, KeySize)
	if _, err := io.ReadFull(rand, key); err != nil {
		return secret.Bytes{}, fmt.Errorf("sealed secret: read randomness: %w", err)
	}
	held := secret.New(key)
	if err := p.EncryptDataWith(rand, held, plaintext, wrap); err != nil {
		return secret.Bytes{}, err
	}
	return held, nil
}

// EncryptDataWith does so with a key that the provider has made.
func (p *Payload) EncryptDataWith(rand io.Reader, key, plaintext secret.Bytes, wrap Wrap) error {
	if key.Len() != KeySize {
		return fmt.Errorf("sealed secret: a data key of %d bytes, expected %d", key.Len(), KeySize)
	}
	block, err := aes.NewCipher(key.Expose())
	if err != nil {
		return err
	}
	iv := make([]byte, gcmNonce)
	if wrap == A256CTR {
		iv = make([]byte, aes.BlockSize)
	}
	if _, err := io.ReadFull(rand, iv); err != nil {
		return fmt.Errorf("sealed secret: read randomness: %w", err)
	}
	var data []byte
	switch wrap {
	case A256GCM:
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return err
		}
		data = gcm.Seal(nil, iv, plaintext.Expose(), nil)
	case A256CTR:
		data = make([]byte, plaintext.Len())
		cipher.NewCTR(block, iv).XORKeyStream(data, plaintext.Expose())
	default:
		return fmt.Errorf("sealed secret: wrap type: expected %s or %s, got %.32q", A256GCM, A256CTR, wrap)
	}
	p.Wrap, p.IV, p.EncryptedData = wrap, base64.StdEncoding.EncodeToString(iv), base64.StdEncoding.EncodeToString(data)
	return nil
}

// DecryptData opens the data of an envelope with its key.
func (p Payload) DecryptData(key secret.Bytes) (secret.Bytes, error) {
	if p.Type != Envelope {
		return secret.Bytes{}, errNot
	}
	if key.Len() != KeySize {
		return secret.Bytes{}, fmt.Errorf("sealed secret: payload.encrypted_key: holds a key of %d bytes, expected %d", key.Len(), KeySize)
	}
	iv, err := std("iv", p.IV)
	if err != nil {
		return secret.Bytes{}, err
	}
	data, err := std("encrypted_data", p.EncryptedData)
	if err != nil {
		return secret.Bytes{}, err
	}
	block, err := aes.NewCipher(key.Expose())
	if err != nil {
		return secret.Bytes{}, err
	}
	switch p.Wrap {
	case A256GCM:
		return openGCM(block, "payload.encrypted_data", iv, data)
	case A256CTR:
		if len(iv) != aes.BlockSize {
			return secret.Bytes{}, fmt.Errorf("sealed secret: payload.iv: expected %d bytes for %s, got %d", aes.BlockSize, A256CTR, len(iv))
		}
		cipher.NewCTR(block, iv).XORKeyStream(data, data)
		return secret.New(data), nil
	}
	return secret.Bytes{}, fmt.Errorf("sealed secret: payload.wrap_type: expected %s or %s, got %.32q", A256GCM, A256CTR, p.Wrap)
}

func openGCM(block cipher.Block, what string, iv, data []byte) (secret.Bytes, error) {
	if len(iv) != gcmNonce || len(data) < gcmTag {
		return secret.Bytes{}, fmt.Errorf("sealed secret: %s: expected a nonce of %d bytes and at least %d of data, got %d and %d", what, gcmNonce, gcmTag, len(iv), len(data))
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return secret.Bytes{}, err
	}
	plaintext, err := gcm.Open(data[:0], iv, data, nil)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("sealed secret: %s: cannot be decrypted: it was encrypted with another key, or changed", what)
	}
	return secret.New(plaintext), nil
}

// Key returns the encrypted key of an envelope, as its provider made it.
func (p Payload) Key() ([]byte, error) {
	if p.Type != Envelope {
		return nil, errNot
	}
	return std("encrypted_key", p.EncryptedKey)
}

// WrapKey encrypts an envelope's key for the provider [KBS], with a key of 32
// bytes that the key broker holds under the resource URI keyID. It sets
// Provider, KeyID, EncryptedKey and Annotations: AES-256-GCM, tag at the end,
// the nonce in annotations.iv. (That is the form in which keys of encrypted
// image layers are wrapped.)
func (p *Payload) WrapKey(rand io.Reader, key, kek secret.Bytes, keyID string) error {
	if kek.Len() != KeySize || key.Len() != KeySize {
		return fmt.Errorf("sealed secret: keys of %d and %d bytes, expected %d: an envelope's key and the broker's are AES-256 keys", key.Len(), kek.Len(), KeySize)
	}
	block, err := aes.NewCipher(kek.Expose())
	if err != nil {
		return err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	nonce := make([]byte, gcmNonce)
	if _, err := io.ReadFull(rand, nonce); err != nil {
		return fmt.Errorf("sealed secret: read randomness: %w", err)
	}
	annotations, err := json.Marshal(kbsAnnotations{base64.StdEncoding.EncodeToString(nonce)})
	if err != nil {
		return err
	}
	p.Provider, p.KeyID, p.Annotations = KBS, keyID, annotations
	p.EncryptedKey = base64.StdEncoding.EncodeToString(gcm.Seal(nil, nonce, key.Expose(), nil))
	return nil
}

// UnwrapKey undoes [Payload.WrapKey].
func (p Payload) UnwrapKey(kek secret.Bytes) (secret.Bytes, error) {
	if p.Type != Envelope || p.Provider != KBS {
		return secret.Bytes{}, errors.New("sealed secret: not an envelope of the key broker")
	}
	if err := p.NoSettings(); err != nil {
		return secret.Bytes{}, fmt.Errorf("sealed secret: %w", err)
	}
	var a kbsAnnotations
	if err := Into(p.Annotations, "annotations", &a); err != nil {
		return secret.Bytes{}, fmt.Errorf("sealed secret: %w", err)
	}
	if kek.Len() != KeySize {
		return secret.Bytes{}, fmt.Errorf("sealed secret: payload.key_id: %s holds %d bytes, expected a key of %d", p.KeyID, kek.Len(), KeySize)
	}
	nonce, err := std("annotations.iv", a.IV)
	if err != nil {
		return secret.Bytes{}, err
	}
	wrapped, err := p.Key()
	if err != nil {
		return secret.Bytes{}, err
	}
	block, err := aes.NewCipher(kek.Expose())
	if err != nil {
		return secret.Bytes{}, err
	}
	return openGCM(block, "payload.encrypted_key", nonce, wrapped)
}
