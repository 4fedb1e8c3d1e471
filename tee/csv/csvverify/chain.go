package csvverify

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/csv"
	"github.com/coffer-project/coffer/tee/internal/checks"
)

//go:embed hrk.cert
var hygonRoot []byte

// hygonRootDigest pins Hygon's root apart from the file.
const hygonRootDigest = "296efa97580464aca0ab5eefe42199ee05862182508d1629f29cf4dc175b10cd"

// HSKCEKSize is the size of what Hygon's server answers: HSK and CEK, one after
// the other.
const HSKCEKSize = csv.CACertificateSize + csv.CertificateSize

// root is an HRK.
type root struct {
	name        string
	development bool
	digest      [sha256.Size]byte
	cert        *csv.CACertificate
}

func newRoot(name string, raw []byte, development bool) (*root, error) {
	c, err := csv.ParseCACertificate(raw)
	if err != nil {
		return nil, err
	}
	r := &root{name: name, development: development, digest: sha256.Sum256(raw), cert: c}
	if c.Key.Usage != csv.UsageHRK || c.KeyID != c.SignerID {
		return nil, fmt.Errorf("csv: root: expected a self-signed HRK, got %s %x signed by %x", c.Key.Usage, c.KeyID, c.SignerID)
	}
	if err := verifySM2(&c.Key, c.Signed, c.Signature); err != nil {
		return nil, fmt.Errorf("csv: root: signature of itself: %w", err)
	}
	return r, nil
}

// hygon is the embedded root.
func hygon() (*root, error) {
	r, err := newRoot("Hygon", hygonRoot, false)
	if err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(r.digest[:]); got != hygonRootDigest {
		return nil, fmt.Errorf("csvverify: Hygon's embedded root: expected sha256 %s, got %s", hygonRootDigest, got)
	}
	return r, nil
}

// find is the root whose key identifier signed the HSK, nil for none.
func find(roots []*root, hsk *csv.CACertificate) *root {
	for _, r := range roots {
		if r.cert.KeyID == hsk.SignerID {
			return r
		}
	}
	return nil
}

// checkHSK checks an HSK under the roots, which it records into l; nil is
// returned where it is not the one it has to be.
func checkHSK(l *checks.List, roots []*root, hsk *csv.CACertificate) *root {
	if hsk.Key.Usage != csv.UsageHSK {
		l.Fail(wrongKey("hsk", csv.UsageHSK, hsk.Key.Usage))
		return nil
	}
	r := find(roots, hsk)
	if r == nil {
		names := ""
		for _, r := range roots {
			names += fmt.Sprintf("%s (%x) ", r.name, r.cert.KeyID)
		}
		l.Fail(tee.Failure{
			Check: "csv.chain", Field: "cert_chain.hsk_cek.hsk", Expected: "signed by one of the roots " + names, Got: fmt.Sprintf("signed by %x", hsk.SignerID),
			Help: "this root is neither Hygon's nor a configured development root",
		})
		return nil
	}
	if err := verifySM2(&r.cert.Key, hsk.Signed, hsk.Signature); err != nil {
		l.Fail(badSignature("csv.hsk_signature", "cert_chain.hsk_cek.hsk", csv.UsageHRK, err))
		return nil
	}
	return r
}

// checkCEK checks a CEK under an HSK that is good.
func checkCEK(l *checks.List, hsk *csv.CACertificate, cek *csv.Certificate) bool {
	if cek.Key.Usage != csv.UsageCEK {
		l.Fail(wrongKey("cek", csv.UsageCEK, cek.Key.Usage))
		return false
	}
	if cek.SignerID != hsk.KeyID {
		l.Fail(tee.Failure{
			Check: "csv.chain", Field: "cert_chain.hsk_cek.cek", Expected: fmt.Sprintf("signed by the HSK %x", hsk.KeyID), Got: fmt.Sprintf("signed by %x", cek.SignerID),
			Help: "HSK and CEK are of different chains: fetch both for this chip",
		})
		return false
	}
	return checkSlot(l, "csv.cek_signature", "cert_chain.hsk_cek.cek", &hsk.Key, cek)
}

// checkSlot checks the signature in c that a key has to have made.
func checkSlot(l *checks.List, check, field string, by *csv.PublicKey, c *csv.Certificate) bool {
	s, err := c.SignatureOf(by.Usage)
	if err == nil {
		err = verifySM2(by, c.Signed, s)
	}
	if err != nil {
		l.Fail(badSignature(check, field, by.Usage, err))
		return false
	}
	return true
}

func wrongKey(field string, want, got csv.Usage) tee.Failure {
	return tee.Failure{
		Check: "csv.chain", Field: "cert_chain." + field, Expected: "certificate of a " + want.String(), Got: got.String(),
		Help: "the certificates are in the wrong places, or made for something else",
	}
}

func badSignature(check, field string, by csv.Usage, err error) tee.Failure {
	return tee.Failure{
		Check: check, Field: field, Expected: "a valid signature by the " + by.String(), Got: err.Error(),
		Help: "it was altered, or the certificates of another chip are next to it",
	}
}

// CheckHSKCEK says whether raw, [HSKCEKSize] bytes, is an HSK that Hygon's root
// signed and a CEK that this HSK signed. It cannot say whose chip the CEK is of:
// certificates do not hold serial numbers.
func CheckHSKCEK(raw []byte) error {
	r, err := hygon()
	if err != nil {
		return err
	}
	hsk, cek, err := parsePair(raw)
	if err != nil {
		return err
	}
	l := checks.New(tee.CSV, false)
	if checkHSK(l, []*root{r}, hsk) != nil {
		checkCEK(l, hsk, cek)
	}
	return l.Err()
}

func parsePair(raw []byte) (*csv.CACertificate, *csv.Certificate, error) {
	if len(raw) != HSKCEKSize {
		return nil, nil, fmt.Errorf("csvverify: HSK and CEK: expected %d bytes, got %d", HSKCEKSize, len(raw))
	}
	hsk, hskErr := csv.ParseCACertificate(raw[:csv.CACertificateSize])
	cek, cekErr := csv.ParseCertificate(raw[csv.CACertificateSize:])
	return hsk, cek, errors.Join(hskErr, cekErr)
}
