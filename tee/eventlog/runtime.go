package eventlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// maxRuntimeLog bounds a log of run-time events alone, in bytes.
const maxRuntimeLog = 1 << 20

// RuntimeEvidence is a log of run-time events (kind AAEL) beside evidence that has
// no place for one. Report data vouches for it: it is part of the additional
// evidence, to which the primary evidence is bound. Where a TPM's register was
// extended by the events, PCR says which one, in the SHA-256 bank; nil: none was.
type RuntimeEvidence struct {
	Log []byte
	PCR *int
}

type runtimeEvidence struct {
	Log []byte `json:"log"`
	PCR *int   `json:"pcr,omitempty"`
}

// JSON is {"log": BASE64, "pcr": NUMBER}, the latter where there is a register.
func (e RuntimeEvidence) JSON() (json.RawMessage, error) {
	if len(e.Log) > maxRuntimeLog {
		return nil, fmt.Errorf("eventlog: run-time events: expected at most %d bytes, got %d", maxRuntimeLog, len(e.Log))
	}
	return json.Marshal(runtimeEvidence(e))
}

// ParseRuntimeEvidence reads what [RuntimeEvidence.JSON] wrote and nothing else. An
// empty log is legal: nothing has happened yet.
func ParseRuntimeEvidence(data json.RawMessage) (*RuntimeEvidence, error) {
	var e runtimeEvidence
	if err := strictjson.Decode(data, &e, strictjson.Limits{Bytes: maxRuntimeLog/3*4 + 256, Depth: 2}); err != nil {
		return nil, fmt.Errorf("eventlog: run-time events: %w", err)
	}
	if len(e.Log) > maxRuntimeLog {
		return nil, fmt.Errorf("eventlog: run-time events: expected at most %d bytes, got %d", maxRuntimeLog, len(e.Log))
	}
	if e.PCR != nil && (*e.PCR < 0 || *e.PCR > maxPCR) {
		return nil, fmt.Errorf("eventlog: run-time events: pcr: expected 0 to %d, got %d", maxPCR, *e.PCR)
	}
	out := RuntimeEvidence(e)
	return &out, nil
}

// Replayed reads the events, and the value that a register has which began with
// zeros and was extended by them: 48 bytes for SHA-384, 32 for SHA-256. Every event must be a run-time
// event whose digest is that of its data, of one register and one algorithm.
func (e *RuntimeEvidence) Replayed() (events []any, value []byte, err error) {
	if len(e.Log) == 0 {
		return []any{}, nil, nil
	}
	log, err := Parse(e.Log, AAEL)
	if err != nil {
		return nil, nil, err
	}
	if len(log.Algorithms) != 1 {
		return nil, nil, fmt.Errorf("eventlog: run-time events: algorithms: expected one, got %d", len(log.Algorithms))
	}
	alg := log.Algorithms[0]
	value = make([]byte, alg.Size())
	for i := range log.Events {
		event := &log.Events[i]
		if event.Register != log.Events[0].Register {
			return nil, nil, fmt.Errorf("eventlog: event %d: register: expected %d, got %d", i, log.Events[0].Register, event.Register)
		}
		digest := event.Digest(alg)
		if !isAAEL(event) || digest == nil || !bytes.Equal(digest, log.sum(alg, event.Data)) {
			return nil, nil, fmt.Errorf("eventlog: event %d: expected a run-time event with the digest of its data", i)
		}
		value = log.sum(alg, value, digest)
	}
	if events = log.RuntimeEvents(); len(events) != len(log.Events) {
		return nil, nil, errors.New("eventlog: run-time events: some of them have no domain, operation and content")
	}
	return events, value, nil
}

// RuntimeEvents is the claim "runtime_events": a list of
//
//	{"domain": …, "operation": …, "content": …}
//
// in the order in which they happened; content is a JSON value where it is JSON,
// and a string otherwise. Events whose digest is of other data are left out.
func (l *Log) RuntimeEvents() []any {
	out := []any{}
	for i := range l.Events {
		e := &l.Events[i]
		details, err := e.Details()
		if err != nil || details.Runtime == nil || !l.DigestMatchesEvent(e) {
			continue
		}
		r := details.Runtime
		out = append(out, map[string]any{"domain": r.Domain, "operation": r.Operation, "content": r.ContentValue()})
	}
	return out
}
