package collateral

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// Limits on what comes from services and files.
const (
	// MaxBody is the greatest size of an item in bytes.
	MaxBody = 1 << 20
	// MaxChain is the greatest size of an issuer chain in bytes.
	MaxChain = 64 << 10

	maxEnvelope = (MaxBody+MaxChain)*4/3 + 1<<20
)

// Entry is an item that passed the checks. Its slices must not be changed.
type Entry struct {
	Item Item
	// Body is the item in the encoding that [Kind] names.
	Body []byte
	// Chain are certificates in PEM: of Intel's documents the issuers, leaf
	// first; of an OCSP response the certificate in question and its issuer.
	Chain []byte
	// Source is the URL or file it came from.
	Source string
	// Fetched is when it came.
	Fetched time.Time
	// Issued and NextUpdate are the dates it has itself; of a certificate its
	// validity. A zero NextUpdate is none: it does not grow stale.
	Issued, NextUpdate time.Time
}

// Stale reports whether the document's own time is over.
func (e *Entry) Stale(now time.Time) bool { return !e.NextUpdate.IsZero() && now.After(e.NextUpdate) }

// envelope is the form of an entry in a file. SHA256 covers all the rest.
type envelope struct {
	Version    int       `json:"version"`
	Item       Item      `json:"item"`
	Source     string    `json:"source"`
	Fetched    time.Time `json:"fetched"`
	Issued     time.Time `json:"issued"`
	NextUpdate time.Time `json:"next_update"`
	Chain      string    `json:"chain"`
	Body       []byte    `json:"body"`
	SHA256     string    `json:"sha256"`
}

const envelopeVersion = 1

// sum is the digest of the envelope as it is without one.
func (v envelope) sum() (string, error) {
	v.SHA256 = ""
	data, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

// encode writes the entry; without its body where that has a file of its own.
func (e *Entry) encode(withBody bool) ([]byte, error) {
	v := envelope{
		Version: envelopeVersion, Item: e.Item, Source: e.Source, Fetched: e.Fetched.UTC().Truncate(time.Second),
		Issued: e.Issued.UTC(), NextUpdate: e.NextUpdate.UTC(), Chain: string(e.Chain), Body: e.Body,
	}
	var err error
	if v.SHA256, err = v.sum(); err != nil {
		return nil, err
	}
	if !withBody {
		v.Body = nil
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

var errDigest = errors.New("the digest is that of other content: the file is damaged")

// decodeEntry reads what encode wrote. body is the content of the file that the
// body has to itself, or nil. The dates are what the file claims.
func decodeEntry(data, body []byte) (*Entry, error) {
	var v envelope
	if err := strictjson.Decode(data, &v, strictjson.Limits{Bytes: maxEnvelope, Depth: 2}); err != nil {
		return nil, err
	}
	if v.Version != envelopeVersion {
		return nil, fmt.Errorf("version: expected %d, got %d", envelopeVersion, v.Version)
	}
	if body != nil {
		if v.Body != nil {
			return nil, errors.New("body: expected none beside a file that holds it")
		}
		v.Body = body
	}
	if sum, err := v.sum(); err != nil || sum != v.SHA256 {
		return nil, errDigest
	}
	e := &Entry{
		Item: v.Item, Body: v.Body, Source: v.Source, Fetched: v.Fetched, Issued: v.Issued, NextUpdate: v.NextUpdate,
	}
	if v.Chain != "" {
		e.Chain = []byte(v.Chain)
	}
	return e, nil
}
