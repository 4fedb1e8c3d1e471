package dcap

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// Limits on documents.
const (
	// MaxDocument bounds a TCB info or QE identity in bytes. Intel's longest
	// have about 40 kB.
	MaxDocument = 1 << 20

	maxDepth      = 12
	maxLevels     = 1024
	maxAdvisories = 1024
)

// openTCBInfo and openQEIdentity return the inner object of a document and its
// signature.
func openTCBInfo(body []byte) (inner json.RawMessage, signature string, err error) {
	var doc struct {
		Inner     json.RawMessage `json:"tcbInfo"`
		Signature string          `json:"signature"`
	}
	err = strictjson.Decode(body, &doc, strictjson.Limits{Bytes: MaxDocument, Depth: maxDepth})
	return doc.Inner, doc.Signature, err
}

func openQEIdentity(body []byte) (inner json.RawMessage, signature string, err error) {
	var doc struct {
		Inner     json.RawMessage `json:"enclaveIdentity"`
		Signature string          `json:"signature"`
	}
	err = strictjson.Decode(body, &doc, strictjson.Limits{Bytes: MaxDocument, Depth: maxDepth})
	return doc.Inner, doc.Signature, err
}

// signedBy checks the signature over exactly the bytes of inner and returns the
// chain of its signer.
func signedBy(inner json.RawMessage, signature string, chain []byte, roots *RootSet) ([]*x509.Certificate, *Root, error) {
	certs, root, err := signingChain(chain, roots)
	if err != nil {
		return nil, nil, fmt.Errorf("issuer chain: %w", err)
	}
	key, err := p256Key(certs[0])
	if err != nil {
		return nil, nil, fmt.Errorf("issuer chain: %w", err)
	}
	raw, err := hex.DecodeString(signature)
	if err != nil || len(raw) != 64 || hex.EncodeToString(raw) != signature {
		return nil, nil, errors.New("signature: expected 64 bytes in lower-case hexadecimal digits")
	}
	sum := sha256.Sum256(inner)
	if !verifyRaw(key, sum[:], raw) {
		return nil, nil, errors.New("signature: it is not of these bytes by the issuer chain's key")
	}
	return certs, root, nil
}

// verifyRaw checks a signature of two numbers of 32 bytes, big-endian.
func verifyRaw(key *ecdsa.PublicKey, digest, signature []byte) bool {
	if len(signature) != 64 {
		return false
	}
	return ecdsa.Verify(key, digest, new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
}

// hexBytes is a byte string that a document spells in hexadecimal digits, of
// either case.
type hexBytes []byte

// UnmarshalJSON implements json.Unmarshaler.
func (h *hexBytes) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	b, err := hex.DecodeString(s)
	*h = b
	return err
}

// fixed copies a byte string into a field of its exact size.
func fixed(field string, to []byte, from hexBytes) error {
	if len(from) != len(to) {
		return fmt.Errorf("%s: expected %d bytes, got %d", field, len(to), len(from))
	}
	copy(to, from)
	return nil
}

// checkDates refuses a document that is not dated.
func checkDates(issued, next time.Time) error {
	if issued.IsZero() || !next.After(issued) {
		return fmt.Errorf("issueDate, nextUpdate: expected two dates in this order, got %s and %s", issued.Format(time.RFC3339), next.Format(time.RFC3339))
	}
	return nil
}
