package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"
)

// Kinds of verdict.
const (
	KindAttestation = "attestation"
	KindResource    = "resource"
)

// MaxVerdictClaims bounds the claims of one verdict, in bytes; larger claims
// are left out and the verdict says so.
const MaxVerdictClaims = 64 << 10

// Verdict is one decision: on evidence, or on the release of a resource. Its
// JSON form is what the admin API returns. It holds no secrets.
type Verdict struct {
	At   time.Time `json:"at"`
	Kind string    `json:"kind"`
	TEE  string    `json:"tee,omitempty"`
	// Session is [SessionID]; empty when the request had no known session.
	Session  string `json:"session,omitempty"`
	Resource string `json:"resource,omitempty"`
	Granted  bool   `json:"granted"`
	// Status is the HTTP status of the answer.
	Status int `json:"status"`
	// EARStatus is the worst status of the appraisal, for attestations.
	EARStatus string `json:"ear_status,omitempty"`
	// Reason is the problem body's reason, as JSON, and Detail its text.
	Reason json.RawMessage `json:"reason,omitempty"`
	Detail string          `json:"detail,omitempty"`
	// Claims are what the evidence claims, as JSON.
	Claims json.RawMessage `json:"claims,omitempty"`
	// InitData is the evidence's initdata field in hex.
	InitData  string `json:"initdata,omitempty"`
	Simulated bool   `json:"simulated"`
	// AllowSimulated: simulated evidence was tolerated by configuration.
	AllowSimulated bool   `json:"allow_simulated,omitempty"`
	PolicyID       string `json:"policy,omitempty"`
}

// AddVerdict appends to the log.
func (s *Store) AddVerdict(ctx context.Context, v Verdict) error {
	return wrap("record verdict", s.tx(ctx, func(tx *sql.Tx) error { return s.addVerdict(ctx, tx, v) }))
}

// pruneEvery is how many verdicts pass between two looks for old ones.
const pruneEvery = 64

func (s *Store) addVerdict(ctx context.Context, tx *sql.Tx, v Verdict) error {
	if v.At.IsZero() {
		v.At = s.o.Now()
	}
	v.At = v.At.UTC()
	if len(v.Claims) > MaxVerdictClaims {
		v.Claims = fmt.Appendf(nil, `{"omitted":"%d bytes of claims, at most %d are kept"}`, len(v.Claims), MaxVerdictClaims)
	}
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var id int64
	if err := tx.QueryRowContext(ctx, "INSERT INTO verdicts (at, session, class, body) VALUES (?, ?, ?, ?) RETURNING id",
		millis(v.At), v.Session, class(v.Kind, v.Granted), string(body)).Scan(&id); err != nil {
		return err
	}
	if id%pruneEvery != 0 {
		return nil
	}
	return s.pruneVerdicts(ctx, tx)
}

// class is what a verdict competes with for room. Anyone can be refused at
// will, and every genuine guest attest: neither may push out the record of who
// was given what.
func class(kind string, granted bool) string {
	if granted {
		return kind + " granted"
	}
	return kind + " refused"
}

func (s *Store) pruneVerdicts(ctx context.Context, tx *sql.Tx) error {
	for _, kind := range []string{KindAttestation, KindResource} {
		for _, granted := range []bool{true, false} {
			c := class(kind, granted)
			// Verdicts of schema version 1 have no class and go with the first that is full.
			if _, err := tx.ExecContext(ctx, `DELETE FROM verdicts WHERE class IN (?, '') AND id <=
				(SELECT id FROM verdicts WHERE class = ? ORDER BY id DESC LIMIT 1 OFFSET ?)`, c, c, s.o.MaxVerdicts); err != nil {
				return err
			}
		}
	}
	return nil
}

// Verdicts returns up to limit verdicts, newest first; session narrows them
// to one session where it is not empty.
func (s *Store) Verdicts(ctx context.Context, limit int, session string) ([]Verdict, error) {
	where, args := "", []any{limit}
	if session != "" {
		where, args = " WHERE session = ?", []any{session, limit}
	}
	return query(ctx, s, "verdicts", "SELECT body FROM verdicts"+where+" ORDER BY id DESC LIMIT ?", args,
		func(scan func(...any) error) (v Verdict, err error) {
			var body []byte
			if err = scan(&body); err == nil {
				err = json.Unmarshal(body, &v)
			}
			return v, err
		})
}
