package kbs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Limits of a list of roots.
const (
	maxRootBytes = 256 << 10
	maxRoots     = 64
)

// ParseRoots reads PEM certificates to pin. Unlike the standard library it
// skips nothing: text that is no certificate, and an empty list, are errors.
// A server's own certificate is accepted as its root.
func ParseRoots(text []byte) (*x509.CertPool, error) {
	if len(text) > maxRootBytes {
		return nil, fmt.Errorf("kbs: root certificates have %d bytes, the limit is %d", len(text), maxRootBytes)
	}
	pool := x509.NewCertPool()
	n := 0
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		if !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return nil, fmt.Errorf("kbs: root certificates: text after %d certificates is not PEM", n)
		}
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, fmt.Errorf("kbs: root certificates: PEM block %d is malformed", n+1)
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("kbs: root certificates: PEM block %d: expected CERTIFICATE, got %s", n+1, clip(block.Type, 64))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("kbs: root certificates: certificate %d: %w", n+1, err)
		}
		if n++; n > maxRoots {
			return nil, fmt.Errorf("kbs: root certificates: more than %d certificates", maxRoots)
		}
		pool.AddCert(cert)
		rest = after
	}
	if n == 0 {
		return nil, errors.New("kbs: root certificates: there is no certificate")
	}
	return pool, nil
}
