package openpgp

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"time"
)

// Limits on a message.
const (
	// MaxMessage is the greatest size of a message, in bytes.
	MaxMessage = 256 << 10
	// maxInflated is the greatest size of what a message holds.
	maxInflated = 256 << 10
	// maxSkew is how far clocks may be apart.
	maxSkew = time.Hour
)

// Signed is what a message holds, and who signed it.
type Signed struct {
	// Payload is what was signed.
	Payload []byte
	// Fingerprint is that of the key that signed, Primary that of the primary
	// key it belongs to, both in lower-case hexadecimal.
	Fingerprint, Primary string
	// Created is when it was signed, as the signature says.
	Created time.Time
}

// Verify opens a signed message, armored or binary: a literal with one
// signature of binary data, of version 4, maybe compressed (RFC 9580 section
// 10.3). The signing key must be in the keyring and valid both at now and when
// it signed.
func (k *Keyring) Verify(message []byte, now time.Time) (*Signed, error) {
	s, err := k.verify(message, now)
	if err != nil {
		return nil, fmt.Errorf("OpenPGP message: %w", err)
	}
	return s, nil
}

func (k *Keyring) verify(message []byte, now time.Time) (*Signed, error) {
	if len(message) > MaxMessage {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(message), MaxMessage)
	}
	data, err := dearmor(message, "MESSAGE")
	if err != nil {
		return nil, err
	}
	payload, sig, err := openMessage(data)
	if err != nil {
		return nil, err
	}
	problem := fmt.Errorf("it was signed by key %s, which is not in the keyring", sig.issuerName())
	for _, s := range k.signers {
		if !sig.by(s.key) {
			continue
		}
		if err := sig.verify(s.key, payload); err != nil {
			problem = fmt.Errorf("key %s: %w", s.key.id(), err)
			continue
		}
		if err := s.valid(sig, now); err != nil {
			return nil, fmt.Errorf("key %s: %w", s.key.id(), err)
		}
		return &Signed{Payload: payload, Fingerprint: s.key.id(), Primary: s.primary.id(), Created: sig.created}, nil
	}
	return nil, problem
}

// valid says whether a key may have made a signature that verifies.
func (s *signer) valid(sig *signature, now time.Time) error {
	const form = "2006-01-02 15:04:05"
	switch {
	case s.problem != nil:
		return s.problem
	case sig.created.After(now.Add(maxSkew)):
		return fmt.Errorf("the signature was made at %s, which is to come: is the clock right? It shows %s", sig.created.UTC().Format(form), now.UTC().Format(form))
	case sig.created.Before(s.validFrom):
		return errors.New("the signature is older than the key")
	case !sig.created.Before(s.validUntil):
		return fmt.Errorf("it had expired at %s, before it signed", s.validUntil.UTC().Format(form))
	case !now.Before(s.validUntil):
		return fmt.Errorf("it expired at %s", s.validUntil.UTC().Format(form))
	case !now.Before(after(sig.created, sig.lifetime)):
		return fmt.Errorf("the signature expired at %s", after(sig.created, sig.lifetime).UTC().Format(form))
	default:
		return nil
	}
}

// openMessage splits a message into what was signed and the signature.
func openMessage(data []byte) ([]byte, *signature, error) {
	p, rest, err := nextPacket(data)
	if err != nil {
		return nil, nil, err
	}
	if p.tag == tagCompressed {
		if len(rest) > 0 {
			return nil, nil, errors.New("there is data after the compressed data")
		}
		if data, err = inflate(p.body); err != nil {
			return nil, nil, err
		}
		if p, rest, err = nextPacket(data); err != nil {
			return nil, nil, err
		}
	}
	packets := []packet{p}
	for len(rest) > 0 {
		if len(packets) == 3 {
			return nil, nil, errors.New("there is data after the message")
		}
		if p, rest, err = nextPacket(rest); err != nil {
			return nil, nil, err
		}
		packets = append(packets, p)
	}
	return split(packets)
}

// split takes the two forms of a message: one-pass, literal, signature; and the
// older signature, literal.
func split(packets []packet) ([]byte, *signature, error) {
	var tags []byte
	for _, p := range packets {
		tags = append(tags, p.tag)
	}
	var literal, body, onePass []byte
	switch {
	case bytes.Equal(tags, []byte{tagOnePass, tagLiteral, tagSignature}):
		onePass, literal, body = packets[0].body, packets[1].body, packets[2].body
	case bytes.Equal(tags, []byte{tagSignature, tagLiteral}):
		body, literal = packets[0].body, packets[1].body
	default:
		return nil, nil, fmt.Errorf("expected a literal with one signature, got packets of types %d", tags)
	}
	sig, err := parseSignature(body, false)
	if err != nil {
		return nil, nil, err
	}
	if sig.kind != sigBinary {
		return nil, nil, fmt.Errorf("expected a signature of binary data, got one of type 0x%02x", sig.kind)
	}
	if onePass != nil {
		if err := checkOnePass(onePass, body); err != nil {
			return nil, nil, err
		}
	}
	payload, err := parseLiteral(literal)
	return payload, sig, err
}

// checkOnePass: what the packet announces is the signature that follows (RFC
// 9580 section 5.4).
func checkOnePass(p, signature []byte) error {
	if len(p) != 13 || p[0] != 3 || p[12] != 1 {
		return errors.New("expected a one-pass signature packet of version 3 for one signature")
	}
	if p[1] != signature[1] || p[2] != signature[3] || p[3] != signature[2] {
		return errors.New("the one-pass signature packet announces another signature")
	}
	return nil
}

// parseLiteral takes the content out of a literal (RFC 9580 section 5.9). Its
// name and date are not signed and not read.
func parseLiteral(body []byte) ([]byte, error) {
	if len(body) < 2 {
		return nil, errCut
	}
	if f := body[0]; f != 'b' && f != 't' && f != 'u' {
		return nil, fmt.Errorf("literal of format %q: %w", rune(f), errUnsupported)
	}
	n := 2 + int(body[1]) + 4
	if len(body) < n {
		return nil, errCut
	}
	return body[n:], nil
}

// inflate decompresses (RFC 9580 section 5.6), as far as the limit.
func inflate(body []byte) ([]byte, error) {
	if len(body) == 0 {
		return nil, errCut
	}
	from := bytes.NewReader(body[1:])
	var r io.Reader
	switch body[0] {
	case 0:
		r = from
	case 1:
		r = flate.NewReader(from)
	case 2:
		z, err := zlib.NewReader(from)
		if err != nil {
			return nil, fmt.Errorf("compressed data: %w", err)
		}
		r = z
	default:
		return nil, fmt.Errorf("compression %d: %w, expected ZIP or ZLIB", body[0], errUnsupported)
	}
	out, err := io.ReadAll(io.LimitReader(r, maxInflated+1))
	if err != nil {
		return nil, fmt.Errorf("compressed data: %w", err)
	}
	if len(out) > maxInflated {
		return nil, fmt.Errorf("compressed data: it holds more than %d bytes", maxInflated)
	}
	if from.Len() > 0 {
		return nil, errors.New("compressed data: there is data after its end")
	}
	return out, nil
}
