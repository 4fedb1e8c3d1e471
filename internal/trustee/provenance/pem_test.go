package provenance

import (
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
)

func block(typ string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
}

func TestParsePEM(t *testing.T) {
	t.Parallel()
	a := goodAuthority(t)
	pub, err := x509.MarshalPKIXPublicKey(&a.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := x509.MarshalPKIXPublicKey(&newKey(t, elliptic.P224()).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	keys, roots, err := ParsePEM([]byte(block("CERTIFICATE", a.root.Raw) + "\n" + block("PUBLIC KEY", pub) + "\n"))
	if err != nil || len(keys) != 1 || len(roots) != 1 || !roots[0].Equal(a.root) {
		t.Errorf("got %v, %v, %v", keys, roots, err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":       {"", "expected a public key or a certificate"},
		"garbage":     {"hello", "something else"},
		"trailing":    {block("PUBLIC KEY", pub) + "hello", "something else"},
		"private key": {block("PRIVATE KEY", private), `got "PRIVATE KEY"`},
		"broken key":  {block("PUBLIC KEY", []byte{1}), "public key 0"},
		"weak key":    {block("PUBLIC KEY", weak), "P-256, P-384 or P-521"},
		"broken cert": {block("CERTIFICATE", []byte{1}), "certificate 0"},
		"too large":   {strings.Repeat(" ", MaxDocument+1), "at most"},
	} {
		if _, _, err := ParsePEM([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, expected %q", name, err, c.want)
		}
	}
}
