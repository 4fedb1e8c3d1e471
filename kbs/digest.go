package kbs

import (
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"unicode/utf8"
)

// The hash algorithms of runtime data.
const (
	SHA256 = "sha256"
	SHA384 = "sha384"
	SHA512 = "sha512"
)

// newHash returns the hash of an algorithm's wire name; "" is SHA-384, the
// protocol's default.
func newHash(alg string) (hash.Hash, error) {
	switch alg {
	case "", SHA384:
		return sha512.New384(), nil
	case SHA256:
		return sha256.New(), nil
	case SHA512:
		return sha512.New(), nil
	}
	return nil, fmt.Errorf("unsupported hash algorithm %q: expected sha256, sha384 or sha512", clip(alg, 32))
}

// RuntimeDigest is the report data that binds evidence to a handshake: the
// hash of the RFC 8785 canonical JSON of
//
//	{"additional-evidence":…,"nonce":…,"tee-pubkey":{…}}
//
// additional is the string of additional evidence exactly as it is sent (a
// pointer to "" when there is none) for the primary evidence, and nil, which
// leaves the member out, for a device's evidence and for versions before
// 0.3.0. alg is "", "sha256", "sha384" or "sha512"; "" is SHA-384. The result
// is not yet fitted to the environment's field (see tee.Fit).
func RuntimeDigest(alg, nonce string, key TEEPubKey, additional *string) ([]byte, error) {
	h, err := newHash(alg)
	if err != nil {
		return nil, fmt.Errorf("kbs: runtime data: %w", err)
	}
	doc, err := runtimeJSON(nonce, key, additional)
	if err != nil {
		return nil, err
	}
	h.Write(doc)
	return h.Sum(nil), nil
}

// runtimeJSON writes the canonical document. Its member names are fixed, so
// that canonical order is simply written down.
func runtimeJSON(nonce string, key TEEPubKey, additional *string) ([]byte, error) {
	if !utf8.ValidString(nonce) || additional != nil && !utf8.ValidString(*additional) {
		return nil, errors.New("kbs: runtime data: not valid UTF-8")
	}
	if err := key.Validate(); err != nil {
		return nil, err
	}
	b := []byte{'{'}
	member := func(name, value string) {
		if c := b[len(b)-1]; c != '{' {
			b = append(b, ',')
		}
		b = append(appendJCS(b, name), ':')
		b = appendJCS(b, value)
	}
	if additional != nil {
		member("additional-evidence", *additional)
	}
	member("nonce", nonce)
	b = append(b, `,"tee-pubkey":{`...)
	member("alg", key.Alg)
	switch key.KTY {
	case ktyEC:
		member("crv", key.Crv)
		member("kty", key.KTY)
		member("x", key.X)
		member("y", key.Y)
	case ktyRSA:
		member("e", key.E)
		member("kty", key.KTY)
		member("n", key.N)
	default: // AKP: the key is valid
		member("kty", key.KTY)
		member("pub", key.Pub)
	}
	return append(b, "}}"...), nil
}

// appendJCS appends a string as RFC 8785 section 3.2.2.2 writes it: the short
// escapes of JSON, \u00xx in lower case for other control characters, and
// everything else as it is.
func appendJCS(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, `\b`...)
		case '\t':
			b = append(b, `\t`...)
		case '\n':
			b = append(b, `\n`...)
		case '\f':
			b = append(b, `\f`...)
		case '\r':
			b = append(b, `\r`...)
		default:
			if c < 0x20 {
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			} else {
				b = append(b, c)
			}
		}
	}
	return append(b, '"')
}
