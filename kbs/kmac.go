package kbs

import "crypto/sha3"

// kmacRate is the rate of cSHAKE256 in bytes (NIST SP 800-185 section 3).
const kmacRate = 136

// kmac256 is KMAC256 of NIST SP 800-185 section 4.3 with size bytes of output.
func kmac256(key, data []byte, size int, custom string) []byte {
	h := sha3.NewCSHAKE256([]byte("KMAC"), []byte(custom))
	// newX = bytepad(encode_string(K), 136) ‖ X ‖ right_encode(L)
	head := append(leftEncode(kmacRate), leftEncode(uint64(len(key))*8)...)
	head = append(head, key...)
	defer clear(head)
	_, _ = h.Write(head)
	if over := len(head) % kmacRate; over != 0 {
		_, _ = h.Write(make([]byte, kmacRate-over))
	}
	_, _ = h.Write(data)
	n := leftEncode(uint64(size) * 8)
	_, _ = h.Write(append(n[1:], n[0])) // right_encode: the length comes last
	out := make([]byte, size)
	_, _ = h.Read(out)
	return out
}

// leftEncode is left_encode of SP 800-185 section 2.3.1: the shortest big
// endian form of x, of at least one byte, after its length.
func leftEncode(x uint64) []byte {
	b := []byte{0}
	for shift := 56; shift >= 0; shift -= 8 {
		if c := byte(x >> shift); c != 0 || len(b) > 1 || shift == 0 {
			b = append(b, c)
		}
	}
	b[0] = byte(len(b) - 1)
	return b
}
