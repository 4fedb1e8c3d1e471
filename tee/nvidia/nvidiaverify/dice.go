package nvidiaverify

import (
	"bytes"
	"crypto/x509"
	encodingasn1 "encoding/asn1"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/coffer-project/coffer/tee/nvidia"
)

// dice is what a device says of the firmware that its key was made for.
type dice struct {
	fwid  []byte // SHA-384
	flags []byte // operational flags, nil where there are none
	debug bool
}

// Object identifiers: the extension of Hopper and LS10, a composite device
// identifier as in Microsoft's RIoT specification under TCG's arc; that of
// Blackwell, TCG's DiceTcbInfo (DICE Attestation Architecture 1.1, §6.1.1); SHA-384.
func oidComposite() encodingasn1.ObjectIdentifier {
	return encodingasn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}
}

func oidTCBInfo() encodingasn1.ObjectIdentifier {
	return encodingasn1.ObjectIdentifier{2, 23, 133, 5, 4, 1, 1}
}

func oidSHA384() encodingasn1.ObjectIdentifier {
	return encodingasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
}

// Members of DiceTcbInfo, and a bit of its flags.
const (
	tagFWIDs  = 6
	tagFlags  = 7
	flagDebug = 3
)

// parseDICE reads the firmware identifier out of a leaf. device is the
// certificate above it.
func parseDICE(leaf, device *x509.Certificate) (dice, error) {
	var found *dice
	for _, e := range leaf.Extensions {
		var d dice
		var err error
		switch {
		case e.Id.Equal(oidComposite()):
			d, err = parseComposite(e.Value, device.RawSubjectPublicKeyInfo)
		case e.Id.Equal(oidTCBInfo()):
			d, err = parseTCBInfo(e.Value)
		default:
			continue
		}
		if err != nil {
			return dice{}, err
		}
		if found != nil {
			return dice{}, errors.New("firmware identifier: expected one extension with it, got two")
		}
		found = &d
	}
	if found == nil {
		return dice{}, errors.New("firmware identifier: expected an extension with it, got none")
	}
	return *found, nil
}

// parseComposite reads SEQUENCE { version 1, key of the device's identity, FWID }.
func parseComposite(value, deviceKey []byte) (dice, error) {
	in := cryptobyte.String(value)
	var inner, key cryptobyte.String
	var version int
	if !in.ReadASN1(&inner, asn1.SEQUENCE) || !in.Empty() || !inner.ReadASN1Integer(&version) || version != 1 || !inner.ReadASN1Element(&key, asn1.SEQUENCE) {
		return dice{}, errors.New("firmware identifier: expected a composite device identifier of version 1, got something else")
	}
	if !bytes.Equal(key, deviceKey) {
		return dice{}, errors.New("firmware identifier: expected the key of the device's identity beside it, got another")
	}
	fwid, err := readFWID(&inner)
	if err != nil {
		return dice{}, err
	}
	if !inner.Empty() {
		return dice{}, errors.New("firmware identifier: expected nothing after it")
	}
	return dice{fwid: fwid}, nil
}

func readFWID(s *cryptobyte.String) ([]byte, error) {
	var fwid, digest cryptobyte.String
	var oid encodingasn1.ObjectIdentifier
	if !s.ReadASN1(&fwid, asn1.SEQUENCE) || !fwid.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidSHA384()) ||
		!fwid.ReadASN1(&digest, asn1.OCTET_STRING) || !fwid.Empty() || len(digest) != nvidia.FWIDSize {
		return nil, errors.New("firmware identifier: expected SHA-384 and a digest, got something else")
	}
	return digest, nil
}

// parseTCBInfo reads the first firmware identifier and the flags of a DiceTcbInfo,
// whose members are tagged, optional, and in order.
func parseTCBInfo(value []byte) (dice, error) {
	bad := errors.New("firmware identifier: expected a DiceTcbInfo with firmware identifiers, got something else")
	in := cryptobyte.String(value)
	var inner cryptobyte.String
	if !in.ReadASN1(&inner, asn1.SEQUENCE) || !in.Empty() {
		return dice{}, bad
	}
	var d dice
	for last := -1; !inner.Empty(); {
		var member cryptobyte.String
		var tag asn1.Tag
		if !inner.ReadAnyASN1(&member, &tag) || tag&0xC0 != 0x80 {
			return dice{}, bad
		}
		number := int(tag & 0x1F)
		if number <= last {
			return dice{}, bad
		}
		last = number
		switch number {
		case tagFWIDs:
			fwid, err := readFWID(&member)
			if err != nil {
				return dice{}, err
			}
			d.fwid = fwid
		case tagFlags:
			if len(member) < 2 || member[0] > 7 {
				return dice{}, errors.New("TCB flags: expected a bit string, got something else")
			}
			d.flags = member[1:]
			d.debug = member[1]>>(7-flagDebug)&1 == 1
		}
	}
	if d.fwid == nil {
		return dice{}, bad
	}
	return d, nil
}
