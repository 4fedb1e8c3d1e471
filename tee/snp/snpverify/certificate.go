package snpverify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/tee/snp"
)

// chipCertificate is a VCEK or VLEK certificate with what its extensions say
// (AMD publication 57230, §3.1).
type chipCertificate struct {
	x509    *x509.Certificate
	key     *ecdsa.PublicKey
	product string // for example "Milan-B1"; VLEK: "Milan"
	tcb     snp.TCB
	hwid    []byte // VCEK: 64 bytes, on Turin 8
	cspID   string // VLEK: the provider that the key was made for
}

// Extensions below AMD's arc 1.3.6.1.4.1.3704.1.
const (
	amdArc        = "1.3.6.1.4.1.3704.1."
	extProduct    = "2"
	extBootloader = "3.1"
	extTEE        = "3.2"
	extSNP        = "3.3"
	extMicrocode  = "3.8"
	extFMC        = "3.9" // Turin and newer
	extHWID       = "4"
	extCSPID      = "5"
)

// parseChipCertificate reads the certificate of the key that signs reports.
func parseChipCertificate(der []byte, signer snp.Signer) (*chipCertificate, error) {
	if len(der) > snp.MaxCertificate {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", snp.MaxCertificate, len(der))
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if c.Version != 3 {
		return nil, fmt.Errorf("expected an X.509 certificate of version 3, got %d", c.Version)
	}
	if c.SignatureAlgorithm != x509.SHA384WithRSAPSS {
		return nil, fmt.Errorf("expected a signature by RSASSA-PSS with SHA-384, got %s", c.SignatureAlgorithm)
	}
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return nil, fmt.Errorf("expected an EC P-384 key, got %s", c.PublicKeyAlgorithm)
	}
	if c.IsCA || len(c.UnhandledCriticalExtensions) > 0 {
		return nil, errors.New("expected the certificate of a key that issues no others, without critical extensions")
	}
	if want := "SEV-" + signer.String(); c.Subject.CommonName != want {
		return nil, fmt.Errorf("expected the subject's common name %q, got %.64q", want, c.Subject.CommonName)
	}
	values := map[string][]byte{}
	for _, e := range c.Extensions { // x509 refuses duplicates
		if tail, ok := strings.CutPrefix(e.Id.String(), amdArc); ok {
			values[tail] = e.Value
		}
	}
	out := &chipCertificate{x509: c, key: key}
	if out.product, err = ia5(values, extProduct); err != nil {
		return nil, err
	}
	for _, level := range []struct {
		extension string
		to        *uint8
	}{
		{extBootloader, &out.tcb.Bootloader}, {extTEE, &out.tcb.TEE},
		{extSNP, &out.tcb.SNP}, {extMicrocode, &out.tcb.Microcode},
	} {
		if *level.to, err = level8(values, level.extension); err != nil {
			return nil, err
		}
	}
	for _, reserved := range []string{"3.4", "3.5", "3.6", "3.7"} { // levels without a meaning yet; not all are there
		if _, ok := values[reserved]; !ok {
			continue
		}
		if level, err := level8(values, reserved); err != nil || level != 0 {
			return nil, fmt.Errorf("extension %s%s: expected the INTEGER 0, got %.32x", amdArc, reserved, values[reserved])
		}
	}
	if _, ok := values[extFMC]; ok {
		fmc, err := level8(values, extFMC)
		if err != nil {
			return nil, err
		}
		out.tcb.FMC = &fmc
	}
	switch signer {
	case snp.SignerVCEK:
		out.hwid, err = hardwareID(values)
	case snp.SignerVLEK:
		out.cspID, err = ia5(values, extCSPID)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func missing(extension string) error {
	return fmt.Errorf("expected the extension %s%s, got none", amdArc, extension)
}

// level8 is an INTEGER of 0 to 255.
func level8(values map[string][]byte, extension string) (uint8, error) {
	der, ok := values[extension]
	if !ok {
		return 0, missing(extension)
	}
	var n int
	rest, err := asn1.Unmarshal(der, &n)
	if err != nil || len(rest) != 0 || n < 0 || n > 0xFF {
		return 0, fmt.Errorf("extension %s%s: expected an INTEGER of 0 to 255, got %.32x", amdArc, extension, der)
	}
	return uint8(n), nil
}

// ia5 is an IA5String.
func ia5(values map[string][]byte, extension string) (string, error) {
	der, ok := values[extension]
	if !ok {
		return "", missing(extension)
	}
	var s string
	rest, err := asn1.UnmarshalWithParams(der, &s, "ia5")
	if err != nil || len(rest) != 0 || der[0] != asn1.TagIA5String {
		return "", fmt.Errorf("extension %s%s: expected an IA5String, got %.32x", amdArc, extension, der)
	}
	return s, nil
}

// hardwareID is the chip's identifier. AMD writes the bare bytes; an OCTET
// STRING is understood too.
func hardwareID(values map[string][]byte) ([]byte, error) {
	value, ok := values[extHWID]
	if !ok {
		return nil, missing(extHWID)
	}
	if len(value) == 64 || len(value) == 8 {
		return value, nil
	}
	var id []byte
	rest, err := asn1.Unmarshal(value, &id)
	if err != nil || len(rest) != 0 || len(id) != 64 && len(id) != 8 {
		return nil, fmt.Errorf("extension %s%s: expected 64 bytes (Turin: 8), got %d", amdArc, extHWID, len(value))
	}
	return id, nil
}

// generation is the product without the stepping.
func (c *chipCertificate) generation() snp.Generation {
	line, _, _ := strings.Cut(c.product, "-")
	switch g := snp.Generation(line); g {
	case snp.Milan, snp.Genoa, snp.Turin:
		return g
	}
	return ""
}

// isChip says whether the certificate is that of the chip id. Turin's short
// identifiers are padded with zeros in the report.
func (c *chipCertificate) isChip(id [64]byte) bool {
	return bytes.Equal(id[:len(c.hwid)], c.hwid) && len(bytes.TrimLeft(id[len(c.hwid):], "\x00")) == 0
}
