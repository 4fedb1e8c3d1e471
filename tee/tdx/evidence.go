package tdx

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/jsonscan"
	"github.com/coffer-project/coffer/internal/strictjson"
)

// Limits on evidence from the other side, in bytes.
const (
	// MaxEvidence bounds evidence JSON.
	MaxEvidence = 8 << 20
	// MaxEventLog bounds an event log.
	MaxEventLog = 4 << 20
)

// Evidence is what a TDX attester sends: the value of "primary_evidence" in
// the KBS protocol, {"quote": BASE64, "cc_eventlog": BASE64 or null}.
type Evidence struct {
	Quote []byte
	// EventLog is the CCEL with the runtime events behind it; nil: none.
	EventLog []byte
}

// wireEvidence is the JSON form. base64 text is decoded by hand, since
// encoding/json passes line breaks in it.
type wireEvidence struct {
	EventLog *string `json:"cc_eventlog"`
	Quote    *string `json:"quote"`
}

// ParseEvidence decodes evidence from the other side. It refuses unknown and
// duplicate names, base64 in any but the canonical form, and what is beyond the
// limits. It does not look into quote and event log.
func ParseEvidence(data json.RawMessage) (*Evidence, error) {
	if len(data) > MaxEvidence {
		return nil, fmt.Errorf("tdx: evidence: expected at most %d bytes, got %d", MaxEvidence, len(data))
	}
	if e, ok := scanEvidence(data); ok {
		return e, nil
	}
	var w wireEvidence
	if err := strictjson.Decode(data, &w, strictjson.Limits{Bytes: MaxEvidence, Depth: 2}); err != nil {
		return nil, fmt.Errorf("tdx: evidence: %w", err)
	}
	if w.Quote == nil {
		return nil, errors.New("tdx: evidence: quote: expected base64, got none")
	}
	e := new(Evidence)
	var err error
	if e.Quote, err = decode([]byte(*w.Quote), MaxQuote); err != nil {
		return nil, fmt.Errorf("tdx: evidence: quote: %w", err)
	}
	if w.EventLog != nil {
		if e.EventLog, err = decode([]byte(*w.EventLog), MaxEventLog); err != nil {
			return nil, fmt.Errorf("tdx: evidence: cc_eventlog: %w", err)
		}
	}
	return e, nil
}

// scanEvidence reads evidence as attesters write it, in one pass. It returns
// false for everything else, broken or merely unusual, which strictjson then
// judges.
func scanEvidence(data []byte) (*Evidence, bool) {
	e := new(Evidence)
	r := jsonscan.NewReader(data)
	value := func(to *[]byte, limit int) bool {
		text, ok := r.Text()
		if !ok {
			return false
		}
		var err error
		*to, err = decode(text, limit)
		return err == nil
	}
	ok := r.Object(func(name []byte) bool {
		switch string(name) {
		case "quote":
			return value(&e.Quote, MaxQuote)
		case "cc_eventlog":
			return r.Null() || value(&e.EventLog, MaxEventLog)
		}
		return false
	})
	return e, ok && r.End() && e.Quote != nil
}

// decode reads canonical base64 of at most limit bytes.
func decode(text []byte, limit int) ([]byte, error) {
	if n := base64.StdEncoding.DecodedLen(len(text)); n > limit+2 {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", limit, n)
	}
	for i, c := range text {
		if c == '\n' || c == '\r' {
			return nil, fmt.Errorf("expected base64 without line breaks, got one at %d", i)
		}
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(out, text)
	if err != nil {
		return nil, fmt.Errorf("expected canonical base64: %w", err)
	}
	if n > limit {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", limit, n)
	}
	return out[:n:n], nil
}

// JSON encodes the evidence.
func (e *Evidence) JSON() (json.RawMessage, error) {
	if len(e.Quote) == 0 || len(e.Quote) > MaxQuote || len(e.EventLog) > MaxEventLog {
		return nil, fmt.Errorf("tdx: evidence: expected a quote of at most %d and an event log of at most %d bytes, got %d and %d", MaxQuote, MaxEventLog, len(e.Quote), len(e.EventLog))
	}
	return json.Marshal(struct {
		EventLog []byte `json:"cc_eventlog"`
		Quote    []byte `json:"quote"`
	}{e.EventLog, e.Quote})
}

// FromRaw makes evidence JSON, without an event log, of a raw quote. It refuses
// what is no TDX quote of version 4 or 5.
func FromRaw(raw []byte) (json.RawMessage, error) {
	if _, err := ParseQuote(raw); err != nil {
		return nil, err
	}
	return (&Evidence{Quote: raw}).JSON()
}
