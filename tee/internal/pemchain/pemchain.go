// Package pemchain reads concatenated PEM certificates out of evidence, with
// limits, and in one spelling only: text whose bytes could be others without a
// change of meaning would be a place to hide things in.
package pemchain

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Limits on what comes from the other side.
const (
	MaxBytes        = 64 << 10
	MaxCertificates = 10
)

// Split returns the DER bytes of the certificates in text: "CERTIFICATE" blocks
// without headers, one after the other, in lines of 64 characters. Lines end in
// \n or all in \r\n; after the last block at most one line end, and one NUL as
// C programs leave it, may follow.
func Split(text []byte) ([][]byte, error) {
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("certificate chain: expected at most %d bytes, got %d", MaxBytes, len(text))
	}
	rest := bytes.TrimSuffix(text, []byte{0})
	if unix := bytes.ReplaceAll(rest, []byte("\r\n"), []byte("\n")); len(unix) != len(rest) {
		if bytes.Count(rest, []byte("\n")) != len(rest)-len(unix) {
			return nil, errors.New("certificate chain: expected lines that end alike, got \\n and \\r\\n")
		}
		rest = unix
	}
	if len(rest) > 0 && rest[len(rest)-1] != '\n' {
		rest = append(bytes.Clone(rest), '\n')
	}
	var out [][]byte
	for len(rest) > 0 {
		if len(out) == MaxCertificates {
			return nil, fmt.Errorf("certificate chain: expected at most %d certificates", MaxCertificates)
		}
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, fmt.Errorf("certificate chain: certificate %d: expected a PEM block", len(out))
		}
		if block.Type != "CERTIFICATE" || len(block.Headers) > 0 {
			return nil, fmt.Errorf("certificate chain: certificate %d: expected a block CERTIFICATE without headers, got %.32q", len(out), block.Type)
		}
		if again := pem.EncodeToMemory(block); !bytes.Equal(again, rest[:len(rest)-len(after)]) {
			return nil, fmt.Errorf("certificate chain: certificate %d: expected plain PEM of 64 characters a line, got other spelling", len(out))
		}
		out = append(out, block.Bytes)
		rest = after
	}
	if len(out) == 0 {
		return nil, errors.New("certificate chain: expected certificates, got none")
	}
	return out, nil
}

// Parse is Split followed by x509.ParseCertificate.
func Parse(text []byte) ([]*x509.Certificate, error) {
	ders, err := Split(text)
	if err != nil {
		return nil, err
	}
	out := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		if out[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("certificate chain: certificate %d: %w", i, err)
		}
	}
	return out, nil
}
