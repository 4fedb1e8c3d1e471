package tpmverify

import (
	"encoding/pem"
	"errors"
	"fmt"
)

// ParseAnchors reads PEM text for [Options].TrustedAKs (blocks PUBLIC KEY) and
// [Options].AKRoots (blocks CERTIFICATE). It fails for any other block, and where
// there is none: without keys and roots a verifier would accept any key.
func ParseAnchors(text []byte) (keys, roots [][]byte, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "PUBLIC KEY":
			keys = append(keys, block.Bytes)
		case "CERTIFICATE":
			roots = append(roots, block.Bytes)
		default:
			return nil, nil, fmt.Errorf("expected public keys or certificates in PEM, got %.40q", block.Type)
		}
	}
	if keys == nil && roots == nil {
		return nil, nil, errors.New("expected public keys or certificates in PEM, got none")
	}
	return keys, roots, nil
}
