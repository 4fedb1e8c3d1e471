package adminapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/kbs/admin"
)

// Limits of one answer with entries of the record. Records can be long: an
// answer may have fewer than were asked for, but not none while there are some.
const (
	entriesAtOnce = 32
	entriesBytes  = 4 << 20
)

// auditEntries answers with entries that match the query. ?after=0 begins at
// the start of the chain.
func (a *API) auditEntries(c *call) (any, *problem.Error) {
	q, e := queryOf(c.r, "kind", "resource", "initdata", "session", "subject", "granted", "from", "to", "after", "before", "limit")
	if e != nil {
		return nil, e
	}
	query, e := auditQuery(q)
	if e != nil {
		return nil, e
	}
	entries, e := a.entries(c, query, q.Has("after"))
	if e != nil {
		return nil, e
	}
	return map[string]any{"entries": entries}, nil
}

func auditQuery(q url.Values) (audit.Query, *problem.Error) {
	out := audit.Query{Kind: q.Get("kind"), Resource: q.Get("resource"), InitData: q.Get("initdata"), Session: q.Get("session"), Subject: q.Get("subject")}
	bad := func(name, expected string) *problem.Error {
		return problem.New(http.StatusBadRequest, problem.Serde, "query parameter %s: expected %s, got %.64q", name, expected, q.Get(name))
	}
	if q.Has("kind") && !slices.Contains([]string{audit.KindAttestation, audit.KindResource, audit.KindAdmin}, out.Kind) {
		return out, bad("kind", "attestation, resource or admin")
	}
	if strings.Trim(out.InitData, "0123456789abcdefABCDEF") != "" || len(out.InitData) > 128 {
		return out, bad("initdata", "at most 128 hexadecimal digits")
	}
	if q.Has("granted") {
		granted := q.Get("granted") == "true"
		if !granted && q.Get("granted") != "false" {
			return out, bad("granted", "true or false")
		}
		out.Granted = &granted
	}
	for name, at := range map[string]*time.Time{"from": &out.From, "to": &out.To} {
		if !q.Has(name) {
			continue
		}
		var err error
		if *at, err = time.Parse(time.RFC3339Nano, q.Get(name)); err != nil {
			return out, bad(name, "a time such as 2026-09-01T12:00:00Z (RFC 3339)")
		}
	}
	if q.Has("after") && q.Has("before") {
		return out, problem.New(http.StatusBadRequest, problem.Serde, "query parameters after and before: expected at most one of them")
	}
	var limit int64
	var e *problem.Error
	if out.After, e = number(q, "after", 0, 0, math.MaxInt64); e != nil {
		return out, e
	}
	if out.Before, e = number(q, "before", 0, 1, math.MaxInt64); e != nil {
		return out, e
	}
	limit, e = number(q, "limit", audit.DefaultLimit, 1, audit.MaxLimit)
	out.Limit = int(limit)
	return out, e
}

// entries reads in parts, so that never more is in memory than is answered.
func (a *API) entries(c *call, q audit.Query, oldestFirst bool) ([]audit.Entry, *problem.Error) {
	out := []audit.Entry{}
	want, size := q.Limit, 0
	read := func(q audit.Query) (bool, *problem.Error) {
		list, err := a.o.Store.Entries(c.r.Context(), c.tenant, q)
		if err != nil {
			return false, storeProblem(err)
		}
		for _, x := range list {
			size += len(x.Body)
		}
		out = append(out, list...)
		return len(list) == q.Limit && len(out) < want && size < entriesBytes, nil
	}
	if oldestFirst && q.After == 0 {
		// The chain's first entry, if it is still kept: after=0 means no place
		// in a query of the store.
		first := q
		first.Before, first.Limit = 2, 1
		if _, e := read(first); e != nil {
			return nil, e
		}
		q.After = 1
	}
	for len(out) < want {
		q.Limit = min(want-len(out), entriesAtOnce)
		more, e := read(q)
		if e != nil {
			return nil, e
		}
		if !more {
			break
		}
		if last := out[len(out)-1].Seq; oldestFirst {
			q.After = last
		} else {
			q.Before = last
		}
	}
	return out, nil
}

// verdicts are the decisions among the records, in the form from before there
// was a record, newest first.
func (a *API) verdicts(c *call) (any, *problem.Error) {
	q, e := queryOf(c.r, "limit", "session")
	if e != nil {
		return nil, e
	}
	limit, e := number(q, "limit", audit.DefaultLimit, 1, audit.MaxLimit)
	if e != nil {
		return nil, e
	}
	var list []audit.Entry
	for _, kind := range []string{audit.KindAttestation, audit.KindResource} {
		some, e := a.entries(c, audit.Query{Kind: kind, Session: q.Get("session"), Limit: int(limit)}, false)
		if e != nil {
			return nil, e
		}
		list = append(list, some...)
	}
	slices.SortFunc(list, func(x, y audit.Entry) int { return cmp.Compare(y.Seq, x.Seq) })
	list = list[:min(len(list), int(limit))]
	claims := map[string]json.RawMessage{}
	out := make([]admin.Verdict, len(list))
	for i, x := range list {
		r, e := decodeRecord(x)
		if e != nil {
			return nil, e
		}
		if out[i] = verdict(r); r.Kind != audit.KindResource || r.Session == "" || len(r.Claims) > 0 {
			continue
		}
		// What the guest was is on record once, with its handshake.
		if _, ok := claims[r.Session]; !ok {
			at, e := a.attestationOf(c, r.Session)
			if e != nil {
				return nil, e
			}
			claims[r.Session] = at.Claims
		}
		out[i].Claims = claims[r.Session]
	}
	return out, nil
}

func decodeRecord(x audit.Entry) (audit.Record, *problem.Error) {
	var r audit.Record
	if err := json.Unmarshal(x.Body, &r); err != nil {
		return r, problem.Internal(problem.Storage, fmt.Errorf("audit entry %d: %w", x.Seq, err))
	}
	return r, nil
}

// attestationOf is the record of the handshake in which a session was
// attested, empty where there is none.
func (a *API) attestationOf(c *call, session string) (audit.Record, *problem.Error) {
	granted := true
	list, err := a.o.Store.Entries(c.r.Context(), c.tenant, audit.Query{Kind: audit.KindAttestation, Session: session, Granted: &granted, Limit: 1})
	if err != nil {
		return audit.Record{}, storeProblem(err)
	}
	if len(list) == 0 {
		return audit.Record{}, nil
	}
	return decodeRecord(list[0])
}

func verdict(r audit.Record) admin.Verdict {
	v := admin.Verdict{
		At: r.At, Kind: r.Kind, TEE: r.TEE, Session: r.Session, Resource: strings.TrimPrefix(r.Resource, "kbs:///"),
		Granted: r.Granted, Status: r.Status, EARStatus: r.EARStatus, Detail: r.Detail, Claims: r.Claims,
		InitData: r.InitData, Simulated: r.Simulated, AllowSimulated: r.AllowSimulated, Policy: r.Policy,
	}
	if len(r.Reasons) > 0 {
		v.Reason = &r.Reasons[0]
	}
	return v
}

func (a *API) checkpoints(c *call) (any, *problem.Error) {
	q, e := queryOf(c.r, "after", "limit")
	if e != nil {
		return nil, e
	}
	// Unlike other lists this may go on after something without a limit.
	if _, e := number(q, "after", 0, 0, math.MaxInt64); e != nil {
		return nil, e
	}
	limit, e := number(q, "limit", 0, 1, maxPage)
	if e != nil {
		return nil, e
	}
	list, e := pages(c, page{q.Get("after"), int(limit)}, func(after string, limit int) ([]store.Checkpoint, error) {
		var seq int64
		if after != "" {
			var err error
			if seq, err = strconv.ParseInt(after, 10, 64); err != nil {
				return nil, err
			}
		}
		return a.o.Store.Checkpoints(c.r.Context(), c.tenant, seq, limit)
	}, func(x store.Checkpoint) string { return strconv.FormatInt(x.Seq, 10) })
	if e != nil {
		return nil, e
	}
	out := make([]admin.Checkpoint, len(list))
	for i, x := range list {
		out[i] = admin.Checkpoint(x)
	}
	return out, nil
}

// makeCheckpoint signs the chain's head. It is no change of anything.
func (a *API) makeCheckpoint(c *call) (any, *problem.Error) {
	if a.o.Checkpoint == nil {
		return nil, absent("checkpoints")
	}
	x, err := a.o.Checkpoint(c.r.Context(), c.tenant)
	if err != nil {
		return nil, injected(err)
	}
	return x, nil
}

func (a *API) auditKeys(c *call) (any, *problem.Error) {
	if a.o.AuditKeys == nil {
		return nil, absent("checkpoints")
	}
	keys, err := a.o.AuditKeys(c.r.Context())
	if err != nil {
		return nil, injected(err)
	}
	return keys, nil
}

func absent(what string) *problem.Error {
	return problem.New(http.StatusNotFound, problem.InvalidPath, "this trustee has no %s", what)
}
