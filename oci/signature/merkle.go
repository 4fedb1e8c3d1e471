package signature

import (
	"bytes"
	"crypto/sha256"
	"errors"
)

// checkInclusion says whether a leaf stands at index in the Merkle tree of that
// size and root (RFC 9162 section 2.1.3.2; hashes as in RFC 6962).
func checkInclusion(leaf []byte, index, size int64, path [][]byte, root []byte) error {
	if index < 0 || index >= size {
		return errors.New("inclusion proof: the index is not in the tree")
	}
	hash := nodeHash([]byte{0}, leaf)
	fn, sn := index, size-1
	for _, p := range path {
		if sn == 0 {
			return errors.New("inclusion proof: longer than the tree is deep")
		}
		if len(p) != sha256.Size {
			return errors.New("inclusion proof: a hash has not 32 bytes")
		}
		if fn&1 == 1 || fn == sn {
			hash = nodeHash([]byte{1}, p, hash)
			for fn&1 == 0 && fn != 0 {
				fn, sn = fn>>1, sn>>1
			}
		} else {
			hash = nodeHash([]byte{1}, hash, p)
		}
		fn, sn = fn>>1, sn>>1
	}
	if sn != 0 {
		return errors.New("inclusion proof: shorter than the tree is deep")
	}
	if !bytes.Equal(hash, root) {
		return errors.New("inclusion proof: it leads to another root: the entry is not in the log")
	}
	return nil
}

// nodeHash is the hash of a leaf or of an inner node, by its prefix.
func nodeHash(parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}
