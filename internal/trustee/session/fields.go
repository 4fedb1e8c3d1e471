package session

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// The sealed fields, in order: tee, protocol, policy and hash as strings (one
// byte of length before each), created and expires in milliseconds since 1970
// (8 bytes each, big endian), and the challenge to the end, after a byte that
// says in which form. Guests take cookies of at most 256 characters, if they
// are older than this format, so it is kept short.
const (
	// formBase64 is the decoded form of a challenge that is padded standard base64.
	formBase64 = 1
	// formText is the challenge itself.
	formText = 2
	// formDigest is SHA-256 of a challenge that is too long for a cookie, as
	// IBM Secure Execution's is; its protocol version repeats it.
	formDigest = 3
)

const (
	maxField = 255
	// maxChallenge is the longest challenge that is kept as it is, in bytes.
	maxChallenge = 256
)

func encode(s *Session) ([]byte, error) {
	var b []byte
	for _, f := range []struct{ name, value string }{
		{"tee", string(s.TEE)}, {"protocol", string(s.Protocol)}, {"policy", s.Policy}, {"hash", s.Hash},
	} {
		if len(f.value) > maxField {
			return nil, fmt.Errorf("%s: expected at most %d bytes, got %d", f.name, maxField, len(f.value))
		}
		b = append(append(b, byte(len(f.value))), f.value...)
	}
	for _, t := range []time.Time{s.Created, s.Expires} {
		if t.UnixMilli() <= 0 {
			return nil, errors.New("created, expires: expected times after 1970")
		}
		b = binary.BigEndian.AppendUint64(b, uint64(t.UnixMilli()))
	}
	switch raw, err := base64.StdEncoding.Strict().DecodeString(s.Nonce); {
	case s.Nonce == "":
		return nil, errors.New("nonce: is empty")
	case len(s.Nonce) > maxChallenge:
		sum := sha256.Sum256([]byte(s.Nonce))
		return append(append(b, formDigest), sum[:]...), nil
	case err == nil && base64.StdEncoding.EncodeToString(raw) == s.Nonce:
		return append(append(b, formBase64), raw...), nil
	default:
		return append(append(b, formText), s.Nonce...), nil
	}
}

func decode(b []byte) (*Session, error) {
	errShort := errors.New("fields end early")
	var text [4]string
	for i := range text {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return nil, errShort
		}
		n := 1 + int(b[0])
		text[i], b = string(b[1:n]), b[n:]
	}
	if len(b) < 8+8+1+1 {
		return nil, errShort
	}
	s := &Session{TEE: tee.Name(text[0]), Protocol: kbs.Version(text[1]), Policy: text[2], Hash: text[3]}
	for i, t := range []*time.Time{&s.Created, &s.Expires} {
		ms := binary.BigEndian.Uint64(b[8*i:])
		if ms == 0 || ms >= 1<<50 {
			return nil, errors.New("created, expires: out of range")
		}
		*t = time.UnixMilli(int64(ms)).UTC()
	}
	form, rest := b[16], b[17:]
	switch {
	case form == formBase64 && len(rest) <= maxChallenge:
		s.Nonce = base64.StdEncoding.EncodeToString(rest)
	case form == formText && len(rest) <= maxChallenge:
		s.Nonce = string(rest)
	case form == formDigest && len(rest) == sha256.Size:
		s.digest = rest
	default:
		return nil, fmt.Errorf("nonce: form %d of %d bytes", form, len(rest))
	}
	return s, nil
}
