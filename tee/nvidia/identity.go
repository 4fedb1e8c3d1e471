package nvidia

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	encodingasn1 "encoding/asn1"
)

// Identity is what a device's certificate says it is (DMTF DSP0274 1.1, §
// "Leaf certificate": the otherName manufacturer:product:serial).
type Identity struct {
	// Chip is the product, for example GH100, GB100 or LS_10.
	Chip string
	// Serial is the device's serial number in hex, upper case.
	Serial string
}

// Arch is the generation that the chip belongs to.
func (i Identity) Arch() (Arch, error) {
	switch {
	case strings.HasPrefix(i.Chip, "GH"):
		return Hopper, nil
	case strings.HasPrefix(i.Chip, "GB"):
		return Blackwell, nil
	case i.Chip == "LS_10":
		return LS10, nil
	}
	return "", fmt.Errorf("certificate: chip: expected GH…, GB… or LS_10, got %.32q", i.Chip)
}

// IdentityOf reads the identity out of the subject alternative name of a
// device's certificate. It does not verify the certificate.
func IdentityOf(leaf *x509.Certificate) (Identity, error) {
	for _, e := range leaf.Extensions {
		if e.Id.Equal(encodingasn1.ObjectIdentifier{2, 5, 29, 17}) {
			return parseIdentity(e.Value)
		}
	}
	return Identity{}, errors.New("certificate: expected a subject alternative name with the device's identity, got none")
}

// deviceInfo is DMTF's object identifier id-DMTF-device-info.
func deviceInfo() encodingasn1.ObjectIdentifier {
	return encodingasn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 412, 274, 1}
}

func parseIdentity(value []byte) (Identity, error) {
	var names, name, inner cryptobyte.String
	var oid encodingasn1.ObjectIdentifier
	in := cryptobyte.String(value)
	if !in.ReadASN1(&names, asn1.SEQUENCE) || !in.Empty() ||
		!names.ReadASN1(&name, asn1.Tag(0).ContextSpecific().Constructed()) || !names.Empty() ||
		!name.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(deviceInfo()) ||
		!name.ReadASN1(&inner, asn1.Tag(0).ContextSpecific().Constructed()) || !name.Empty() {
		return Identity{}, errors.New("certificate: subject alternative name: expected one otherName of DMTF's form, got something else")
	}
	var s cryptobyte.String
	if !inner.ReadASN1(&s, asn1.UTF8String) || !inner.Empty() || len(s) > maxText || !printable(string(s)) {
		return Identity{}, errors.New("certificate: subject alternative name: expected a short text, got something else")
	}
	parts := strings.Split(string(s), ":")
	if len(parts) != 3 || parts[0] != "NVIDIA" || parts[1] == "" || parts[2] == "" {
		return Identity{}, fmt.Errorf("certificate: subject alternative name: expected NVIDIA:chip:serial, got %.64q", string(s))
	}
	return Identity{Chip: parts[1], Serial: parts[2]}, nil
}
