package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Verdicts lists decisions, newest first.
func (c *Client) Verdicts(ctx context.Context, q VerdictQuery) ([]Verdict, error) {
	query := url.Values{}
	if q.Limit < 0 {
		return nil, fmt.Errorf("kbs admin: verdicts: limit %d is negative", q.Limit)
	}
	if q.Limit > 0 {
		query.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Session != "" {
		query.Set("session", q.Session)
	}
	return array[Verdict](ctx, c, withQuery(VerdictsPath, query))
}

// Audit lists entries of the tenant's record. Where records are long there are
// fewer than were asked for, but never none while there are some: all of them
// are read by asking on until there are none. [Client.AuditFrom] begins at the
// start.
func (c *Client) Audit(ctx context.Context, q AuditQuery) ([]AuditEntry, error) {
	query, err := q.values()
	if err != nil {
		return nil, err
	}
	return c.entries(ctx, query)
}

// AuditFrom lists at most limit entries with a higher sequence number than
// after, oldest first; 0 begins at the start. The end is an empty list.
func (c *Client) AuditFrom(ctx context.Context, after int64, limit int) ([]AuditEntry, error) {
	if after < 0 || limit < 1 {
		return nil, fmt.Errorf("kbs admin: audit: expected a sequence number and a positive limit, got %d and %d", after, limit)
	}
	return c.entries(ctx, url.Values{"after": {strconv.FormatInt(after, 10)}, "limit": {strconv.Itoa(limit)}})
}

func (c *Client) entries(ctx context.Context, query url.Values) ([]AuditEntry, error) {
	path := withQuery(AuditPath, query)
	a, err := c.do(ctx, call{method: http.MethodGet, path: path, maxBytes: MaxListBytes})
	if err != nil {
		return nil, err
	}
	var out AuditEntries
	// The body of a record is somebody's claims: only the frame is ours.
	if err := json.Unmarshal(a.body, &out); err != nil {
		return nil, fmt.Errorf("kbs admin: GET %s: answer is not the expected JSON document: %w", path, err)
	}
	return out.Entries, nil
}

func (q AuditQuery) values() (url.Values, error) {
	switch {
	case q.Before != 0 && q.After != 0:
		return nil, errors.New("kbs admin: audit: expected before or after, got both")
	case q.Before < 0 || q.After < 0 || q.Limit < 0:
		return nil, errors.New("kbs admin: audit: before, after and limit cannot be negative")
	}
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	number := func(name string, n int64) {
		if n != 0 {
			v.Set(name, strconv.FormatInt(n, 10))
		}
	}
	set("kind", q.Kind)
	set("resource", q.Resource)
	set("initdata", q.InitData)
	set("session", q.Session)
	set("subject", q.Subject)
	if q.Granted != nil {
		v.Set("granted", strconv.FormatBool(*q.Granted))
	}
	if !q.From.IsZero() {
		v.Set("from", q.From.UTC().Format(time.RFC3339Nano))
	}
	if !q.To.IsZero() {
		v.Set("to", q.To.UTC().Format(time.RFC3339Nano))
	}
	number("before", q.Before)
	number("after", q.After)
	number("limit", int64(q.Limit))
	return v, nil
}

// Checkpoints lists the checkpoints above a sequence number, oldest first.
func (c *Client) Checkpoints(ctx context.Context, after int64) ([]Checkpoint, error) {
	q := url.Values{}
	if after != 0 {
		q.Set("after", strconv.FormatInt(after, 10))
	}
	out := []Checkpoint{}
	for range maxPages {
		page, next, err := listPage[Checkpoint](ctx, c, CheckpointsPath, nil, q.Get("after"), pageSize)
		if err != nil {
			return nil, err
		}
		out = append(out, page...)
		if next == "" {
			return out, nil
		}
		q.Set("after", next)
	}
	return nil, fmt.Errorf("kbs admin: GET %s: expected at most %d pages", CheckpointsPath, maxPages)
}

// MakeCheckpoint pins the head of the tenant's chain now.
func (c *Client) MakeCheckpoint(ctx context.Context) (Checkpoint, error) {
	return exchange[Checkpoint](ctx, c, http.MethodPost, CheckpointsPath, nil)
}

// AuditKeys gets the public keys of checkpoints, a JSON Web Key Set.
func (c *Client) AuditKeys(ctx context.Context) (json.RawMessage, error) {
	return exchange[json.RawMessage](ctx, c, http.MethodGet, AuditKeysPath, nil)
}
