package hsm

import (
	"math"
	"time"
)

// The object identifier that describes an object, DER (X.690, section 8.19):
// tag 6, a length below 128, and its arcs in base 128 with the first two
// combined, 2*40+25. encoding/asn1 reads arcs of 31 bits only.
const (
	tagOID    = 0x06
	firstArcs = 2*40 + 25
	ourArc    = 1
	arcs      = 5
)

func (e entry) identifier() []byte {
	body := []byte{firstArcs}
	mark := uint64(0)
	if e.mark {
		mark = 1
	}
	for _, arc := range []uint64{ourArc, uint64(e.version), uint64(max(0, e.created.UnixMilli())), uint64(e.size), mark} {
		var digits []byte
		for more := byte(0); ; more = 0x80 {
			digits = append(digits, byte(arc&0x7f)|more)
			if arc >>= 7; arc == 0 {
				break
			}
		}
		for i := len(digits) - 1; i >= 0; i-- {
			body = append(body, digits[i])
		}
	}
	return append([]byte{tagOID, byte(len(body))}, body...)
}

// parseIdentifier reads CKA_OBJECT_ID in its one encoding. It returns false for
// objects of others.
func parseIdentifier(der []byte) (entry, bool) {
	if len(der) == 0 {
		return entry{version: 1, size: -1, foreign: true}, true
	}
	if len(der) < 3 || der[0] != tagOID || int(der[1]) != len(der)-2 || der[1] > 0x7f || der[2] != firstArcs {
		return entry{}, false
	}
	var n [arcs]uint64
	rest := der[3:]
	for i := range n {
		for first := true; ; first = false {
			if len(rest) == 0 || first && rest[0] == 0x80 || n[i] > math.MaxInt64>>7 {
				return entry{}, false
			}
			digit := rest[0]
			rest = rest[1:]
			n[i] = n[i]<<7 | uint64(digit&0x7f)
			if digit < 0x80 {
				break
			}
		}
	}
	if len(rest) != 0 || n[0] != ourArc || n[1] < 1 || n[1] > maxVersion || n[2] > 1<<56 || n[3] > math.MaxInt32 || n[4] > 1 {
		return entry{}, false
	}
	return entry{version: int64(n[1]), created: time.UnixMilli(int64(n[2])), size: int(n[3]), mark: n[4] == 1}, true
}
