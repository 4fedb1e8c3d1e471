package sealed

import (
	"bytes"
	"crypto/aes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/kbs"
)

// Inspection is what can be told of a sealed secret without any key. Nothing of
// it was verified.
type Inspection struct {
	// Signed is true when there is a signature of the right form, by whomever.
	Signed bool
	Header Header
	// Payload is the document as it was written, nil where it cannot be read.
	Payload json.RawMessage
	// Problems are what guests refuse it for, in the order in which they
	// look. A secret without problems still has to verify.
	Problems []string
}

// Inspect takes a sealed secret apart as far as it goes. Unlike [Parse] it
// reports everything that is wrong at once, and shows what unsigned ones claim.
func Inspect(text string) Inspection {
	var i Inspection
	fail := func(err error) {
		if err != nil {
			i.Problems = append(i.Problems, strings.TrimPrefix(err.Error(), "sealed secret: "))
		}
	}
	if len(text) > MaxBytes {
		fail(fmt.Errorf("%d bytes, at most %d are read", len(text), MaxBytes))
		return i
	}
	text = strings.TrimSpace(text)
	if !Is(text) {
		fail(errors.New("does not begin with " + Prefix))
		return i
	}
	parts := strings.Split(text[len(Prefix):], ".")
	if len(parts) == 1 {
		parts = []string{"", parts[0], ""} // the oldest form has a payload only
	}
	if len(parts) != 3 {
		fail(fmt.Errorf("%d parts after %q, expected 3: header, payload and signature", len(parts), Prefix))
		return i
	}
	var s Secret
	fail(s.parseHeader(parts[0]))
	i.Header = s.header
	if s.header.Alg == algES256 {
		if _, err := kbs.ParseResourceURI(s.header.Kid); err != nil {
			fail(fmt.Errorf("header.kid: %w", err))
		}
		sig, err := decode64(parts[2])
		if i.Signed = err == nil && len(sig) == signatureSize; !i.Signed {
			fail(fmt.Errorf("signature: expected %d bytes in unpadded base64url", signatureSize))
		}
	}
	payload, err := decode64(parts[1])
	if err != nil || !json.Valid(payload) || !bytes.HasPrefix(bytes.TrimSpace(payload), []byte("{")) {
		fail(errors.New("payload: expected a JSON object in unpadded base64url"))
		return i
	}
	i.Payload = payload
	p, err := ParsePayload(payload)
	if err != nil {
		fail(err)
		return i
	}
	for _, err := range p.problems() {
		fail(err)
	}
	return i
}

// problems are those of a payload that was read.
func (p Payload) problems() []error {
	var errs []error
	add := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	uri := func(name, value string) {
		if _, err := kbs.ParseResourceURI(value); err != nil {
			add(fmt.Errorf("payload.%s: %w", name, err))
		}
	}
	switch p.Provider {
	case KBS, AWS, Aliyun:
	default:
		add(fmt.Errorf("payload.provider: expected %s, %s or %s, got %.32q", KBS, AWS, Aliyun, p.Provider))
	}
	if p.Provider == KBS {
		add(p.NoSettings())
	}
	if p.Type == Vault {
		if p.Provider == KBS {
			uri("name", p.Name)
			add(Into(p.Annotations, "annotations", &struct{}{}))
		}
		return errs
	}
	for _, m := range [][2]string{{"encrypted_key", p.EncryptedKey}, {"encrypted_data", p.EncryptedData}} {
		_, err := std(m[0], m[1])
		add(err)
	}
	size := gcmNonce
	if p.Wrap == A256CTR {
		size = aes.BlockSize
	}
	if iv, err := std("iv", p.IV); err != nil || len(iv) != size {
		add(fmt.Errorf("payload.iv: expected %d bytes in padded base64 for %s", size, p.Wrap))
	}
	if p.Provider == KBS {
		uri("key_id", p.KeyID)
		var a kbsAnnotations
		if err := Into(p.Annotations, "annotations", &a); err != nil {
			add(err)
		} else if iv, err := std("annotations.iv", a.IV); err != nil || len(iv) != gcmNonce {
			add(fmt.Errorf("payload.annotations.iv: expected %d bytes in padded base64", gcmNonce))
		}
	}
	return errs
}

// KeyID is the kid of a JWK, "" where it has none or is no JWK.
func KeyID(data []byte) string {
	k, err := parseJWK(data)
	if err != nil {
		return ""
	}
	return k.str("kid")
}
