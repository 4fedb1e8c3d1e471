package severify

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
)

// ultravisor is a machine that unpacks requests and measures, written after the
// layouts of s390-tools apart from the code that makes requests. It proves that
// the two agree, not that a machine does.
type ultravisor struct {
	hostKey   *ecdh.PrivateKey
	imageHash [32]byte // of the host key that unpacked the image
	cuid      [16]byte
	tags      [208]byte
	posesAs   *[32]byte // the host key that it says it has, where that is another's
}

// hash is the SHA-256 of x and y in 80 bytes each.
func (u *ultravisor) hash() [32]byte {
	raw := u.hostKey.PublicKey().Bytes()
	var b [160]byte
	copy(b[14:80], raw[1:67])
	copy(b[94:160], raw[67:133])
	return sha256.Sum256(b[:])
}

func open(key, iv, sealed, aad []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, iv, sealed, aad)
}

// unpack returns the measurement key and the nonce of a request.
func (u *ultravisor) unpack(blob []byte) (key, nonce []byte, err error) {
	be := binary.BigEndian
	switch {
	case len(blob) < 0x30+0x10+0xA0+0x50+0x50+0x10:
		return nil, nil, errors.New("too short")
	case be.Uint64(blob) != 0 || be.Uint32(blob[8:]) != 0x100 || int(be.Uint32(blob[12:])) != len(blob):
		return nil, nil, errors.New("header")
	case be.Uint64(blob[0x30:]) != 0x7000000000000000 || be.Uint32(blob[0x38:]) != 1 || be.Uint32(blob[0x3C:]) != 0:
		return nil, nil, errors.New("flags or algorithm")
	}
	slots, encrypted := int(blob[0x27]), int(be.Uint32(blob[0x2C:]))
	if len(blob) != 0xE0+0x50*slots+encrypted+0x10 || encrypted != 80 {
		return nil, nil, errors.New("sizes")
	}
	point := append([]byte{4}, blob[0x40+14:0x40+80]...)
	customer, err := ecdh.P521().NewPublicKey(append(point, blob[0x40+94:0x40+160]...))
	if err != nil {
		return nil, nil, err
	}
	mine := u.hash()
	for i := range slots {
		slot := blob[0xE0+0x50*i:][:0x50]
		if [32]byte(slot) != mine {
			continue
		}
		shared, err := u.hostKey.ECDH(customer)
		if err != nil {
			return nil, nil, err
		}
		kek := sha256.Sum256(append(shared, 0, 0, 0, 1))
		protection, err := open(kek[:], make([]byte, 12), slot[0x20:], nil)
		if err != nil {
			return nil, nil, fmt.Errorf("slot: %w", err)
		}
		end := len(blob) - encrypted - 16
		secret, err := open(protection, blob[0x10:0x1C], blob[end:], blob[:end])
		if err != nil {
			return nil, nil, fmt.Errorf("request: %w", err)
		}
		return secret[:64], secret[64:], nil
	}
	return nil, nil, errors.New("no slot for this machine")
}

// answer is the guest with its ultravisor: evidence for a challenge, as a map so
// that tests can change it.
func (u *ultravisor) answer(t testing.TB, challenge string, userData []byte) map[string]string {
	t.Helper()
	var c struct {
		Blob       []byte `json:"request_blob"`
		Size       int    `json:"measurement_size"`
		Additional int    `json:"additional_size"`
		Key        string `json:"encr_measurement_key"`
		Nonce      string `json:"encr_request_nonce"`
		Tags       []byte `json:"image_hdr_tags"`
	}
	if err := json.Unmarshal([]byte(challenge), &c); err != nil {
		t.Fatal(err)
	}
	if c.Size != 64 || c.Additional != 64 || len(c.Tags) != 208 {
		t.Fatalf("got sizes %d, %d, %d", c.Size, c.Additional, len(c.Tags))
	}
	key, nonce, err := u.unpack(c.Blob)
	if err != nil {
		t.Fatal(err)
	}
	mine := u.hash()
	if u.posesAs != nil {
		mine = *u.posesAs
	}
	additional := append(u.imageHash[:], mine[:]...)
	h := hmac.New(sha512.New, key)
	h.Write(u.tags[:])
	h.Write(u.cuid[:])
	h.Write([]byte{byte(len(userData) >> 8), byte(len(userData)), 0, 0, 0, 0, 0, 64})
	h.Write(userData)
	h.Write(nonce)
	h.Write(additional)
	b64 := base64.StdEncoding.EncodeToString
	return map[string]string{
		"measurement": b64(h.Sum(nil)), "additional_data": b64(additional), "user_data": b64(userData), "cuid": b64(u.cuid[:]),
		"encr_measurement_key": c.Key, "encr_request_nonce": c.Nonce, "image_hdr_tags": b64(u.tags[:]),
	}
}

func asJSON(t testing.TB, v any) json.RawMessage {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
