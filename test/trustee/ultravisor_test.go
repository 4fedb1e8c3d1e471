package tests

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// ultravisor is an emulated machine of IBM Secure Execution: it opens requests
// that are encrypted to its host key, and measures (layouts of
// s390-tools@c6649588, rust/pv/src/uvattest/arcb.rs; no hardware has proven it).
type ultravisor struct {
	key *ecdh.PrivateKey
	// document is its host-key document in PEM, which nobody has signed.
	document []byte
}

func newUltravisor(t testing.TB) *ultravisor {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "development host key"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := key.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	return &ultravisor{key: private, document: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// hash names the host key: SHA-256 of its coordinates in 80 bytes each.
func (u *ultravisor) hash() []byte {
	point := u.key.PublicKey().Bytes()
	var b [160]byte
	copy(b[14:80], point[1:67])
	copy(b[94:], point[67:])
	sum := sha256.Sum256(b[:])
	return sum[:]
}

func unsealed(t testing.TB, key, iv, sealed, open []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	out, err := aead.Open(nil, iv, sealed, open)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// answer is the guest's evidence over report data, for a request that names this
// machine's host key alone.
func (u *ultravisor) answer(t testing.TB, challenge string, reportData []byte) json.RawMessage {
	t.Helper()
	var c struct {
		Blob       []byte `json:"request_blob"`
		Size       int    `json:"measurement_size"`
		Additional int    `json:"additional_size"`
		Key        string `json:"encr_measurement_key"`
		Nonce      string `json:"encr_request_nonce"`
		Tags       []byte `json:"image_hdr_tags"`
	}
	if err := json.Unmarshal([]byte(challenge), &c); err != nil || c.Size != 64 || c.Additional != 64 {
		t.Fatalf("challenge %q: %v", challenge, err)
	}
	const header, slot = 0xE0, 80
	if len(c.Blob) != header+slot+80+16 || string(c.Blob[header:header+32]) != string(u.hash()) {
		t.Fatalf("request of %d bytes, for another machine", len(c.Blob))
	}
	customer, err := ecdh.P521().NewPublicKey(append(append([]byte{4}, c.Blob[0x40+14:0x40+80]...), c.Blob[0x40+94:0x40+160]...))
	if err != nil {
		t.Fatal(err)
	}
	shared, err := u.key.ECDH(customer)
	if err != nil {
		t.Fatal(err)
	}
	wrapping := sha256.Sum256(append(shared, 0, 0, 0, 1))
	protection := unsealed(t, wrapping[:], make([]byte, 12), c.Blob[header+32:header+slot], nil)
	secret := unsealed(t, protection, c.Blob[0x10:0x1C], c.Blob[header+slot:], c.Blob[:header+slot])
	cuid := make([]byte, 16)
	additional := append(u.hash(), u.hash()...)
	h := hmac.New(sha512.New, secret[:64])
	sizes := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, uint16(len(reportData))), 0)
	sizes = binary.BigEndian.AppendUint16(sizes, uint16(len(additional)))
	for _, part := range [][]byte{c.Tags, cuid, sizes, reportData, secret[64:], additional} {
		h.Write(part)
	}
	b64 := base64.StdEncoding.EncodeToString
	out, err := json.Marshal(map[string]string{
		"measurement": b64(h.Sum(nil)), "additional_data": b64(additional), "user_data": b64(reportData), "cuid": b64(cuid),
		"encr_measurement_key": c.Key, "encr_request_nonce": c.Nonce, "image_hdr_tags": b64(c.Tags),
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
