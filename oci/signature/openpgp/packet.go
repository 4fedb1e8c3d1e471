package openpgp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// Packet types (RFC 9580 section 5).
const (
	tagSignature     = 2
	tagOnePass       = 4
	tagSecretKey     = 5
	tagPublicKey     = 6
	tagSecretSubkey  = 7
	tagCompressed    = 8
	tagMarker        = 10
	tagLiteral       = 11
	tagTrust         = 12
	tagUserID        = 13
	tagPublicSubkey  = 14
	tagUserAttribute = 17
	tagPadding       = 21
)

var errCut = errors.New("the data ends within a packet")

type packet struct {
	tag  byte
	body []byte
}

// nextPacket takes the first packet off data (RFC 9580 section 4.2). Bodies in
// parts are put together; one without a length, which ends with the data, may
// only be compressed data (as GnuPG writes it).
func nextPacket(data []byte) (p packet, rest []byte, err error) {
	if len(data) == 0 {
		return p, nil, errCut
	}
	head := data[0]
	if head&0x80 == 0 {
		return p, nil, errors.New("this is no OpenPGP packet")
	}
	if head&0x40 == 0 {
		return oldPacket(data)
	}
	p.tag = head & 0x3f
	data = data[1:]
	for first := true; ; first = false {
		n, partial, after, err := newLength(data)
		if err != nil {
			return p, nil, err
		}
		if partial && p.tag != tagLiteral && p.tag != tagCompressed {
			return p, nil, fmt.Errorf("packet of type %d: only data may come in parts", p.tag)
		}
		if partial && first && n < 512 {
			return p, nil, errors.New("the first part of a packet has less than 512 bytes")
		}
		if uint64(n) > uint64(len(after)) {
			return p, nil, errCut
		}
		if first && !partial {
			p.body = after[:n:n]
		} else {
			p.body = append(p.body, after[:n]...)
		}
		data = after[n:]
		if !partial {
			return p, data, nil
		}
	}
}

// newLength reads a length in the newer format (RFC 9580 section 4.2.1).
func newLength(data []byte) (n uint32, partial bool, rest []byte, err error) {
	if len(data) == 0 {
		return 0, false, nil, errCut
	}
	switch c := data[0]; {
	case c < 192:
		return uint32(c), false, data[1:], nil
	case c < 224:
		if len(data) < 2 {
			return 0, false, nil, errCut
		}
		return uint32(c-192)<<8 + uint32(data[1]) + 192, false, data[2:], nil
	case c < 255:
		return 1 << (c & 0x1f), true, data[1:], nil
	default:
		if len(data) < 5 {
			return 0, false, nil, errCut
		}
		return binary.BigEndian.Uint32(data[1:]), false, data[5:], nil
	}
}

// oldPacket is nextPacket for the older format (RFC 9580 section 4.2.2).
func oldPacket(data []byte) (p packet, rest []byte, err error) {
	p.tag = data[0] >> 2 & 0x0f
	var size int
	switch data[0] & 3 {
	case 0:
		size = 1
	case 1:
		size = 2
	case 2:
		size = 4
	default:
		if p.tag != tagCompressed {
			return p, nil, fmt.Errorf("packet of type %d: it has no length", p.tag)
		}
		p.body = data[1:]
		return p, nil, nil
	}
	data = data[1:]
	if len(data) < size {
		return p, nil, errCut
	}
	var n uint64
	for _, b := range data[:size] {
		n = n<<8 | uint64(b)
	}
	data = data[size:]
	if n > uint64(len(data)) {
		return p, nil, errCut
	}
	p.body = data[:n:n]
	return p, data[n:], nil
}

// readMPI takes a number off data (RFC 9580 section 3.2). GnuPG counts the bits
// of Ed25519's numbers in more than one way; everywhere else the count has to
// be that of the number.
func readMPI(data []byte, exact bool) (number, rest []byte, err error) {
	if len(data) < 2 {
		return nil, nil, errCut
	}
	count := int(binary.BigEndian.Uint16(data))
	n := (count + 7) / 8
	if data = data[2:]; len(data) < n {
		return nil, nil, errCut
	}
	if exact && (n == 0 || 8*(n-1)+bits.Len8(data[0]) != count) {
		return nil, nil, errors.New("a number has not as many bits as it says")
	}
	return data[:n], data[n:], nil
}
