package audit

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && hex.EncodeToString(b) == s
}

// VerifyOptions of [Verify].
type VerifyOptions struct {
	Tenant tenant.Name
	// Keys verify the checkpoints. They have to come from somewhere else than
	// the log: who can rewrite it can sign it anew with a key of his own.
	Keys Keys
	// Checkpoints are all signed checkpoints that the log holds. They have to be
	// read before the entries: entries may be added meanwhile.
	Checkpoints []string
	// Pinned are signed checkpoints that were kept elsewhere. The newest must be
	// found in the chain: without one, a log that was cut off after a checkpoint
	// of its own, or whose beginning somebody else than retention removed up to
	// one, passes. Retention may have removed what older ones name.
	Pinned []string
	// Complete refuses a chain whose beginning retention has removed: one that
	// does not begin with entry 1.
	Complete bool
}

// Report says what was verified, and what is wrong first.
type Report struct {
	Tenant tenant.Name `json:"tenant"`
	// OK: every entry and checkpoint is as it was written.
	OK bool `json:"ok"`
	// First and Last are sequence numbers; both are 0 of an empty chain.
	First   int64 `json:"first"`
	Last    int64 `json:"last"`
	Entries int64 `json:"entries"`
	// Head is the last entry's hash.
	Head string `json:"head"`
	// From and To are the times of the first and the last record.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
	// Checkpoints counts the signed checkpoints that agree with the chain, and
	// Pinned those among them that were kept elsewhere.
	Checkpoints int `json:"checkpoints"`
	Pinned      int `json:"pinned"`
	// Anchor is the checkpoint that the chain begins at or right after, where
	// retention has removed its beginning.
	Anchor *Checkpoint `json:"anchor,omitempty"`
	// LastCheckpoint is the newest one that agrees with the chain. Entries after
	// it are chained, but not signed yet.
	LastCheckpoint *Checkpoint `json:"last_checkpoint,omitempty"`
	Unsigned       int64       `json:"unsigned"`
	// Expired counts checkpoints of entries that retention has removed: there is
	// nothing left to compare them with.
	Expired int `json:"expired"`
	// Problem is the first thing that is wrong.
	Problem *Problem `json:"problem,omitempty"`
}

// Problem is where a chain is not as it was written.
type Problem struct {
	// Seq is the entry, or the entry that a checkpoint names; 0 where none can be named.
	Seq int64 `json:"seq,omitempty"`
	// What is wrong, for example "hash".
	What     string `json:"what"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
}

func (p *Problem) String() string {
	return fmt.Sprintf("audit log: entry %d: %s: expected %s, got %s", p.Seq, p.What, p.Expected, p.Got)
}

// Verify walks a chain, oldest entry first, and stops at the first thing that
// is wrong, which the report names. An error is not being able to tell: the
// entries could not be read.
func Verify(ctx context.Context, entries iter.Seq2[Entry, error], o VerifyOptions) (Report, error) {
	v := verifier{o: o, pins: map[int64]pin{}, report: Report{Tenant: o.Tenant, Head: Genesis}}
	if p := v.checkpoints(); p != nil {
		return v.failed(p), nil
	}
	for e, err := range entries {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return v.report, fmt.Errorf("audit log of tenant %s: after entry %d: %w", o.Tenant, v.report.Last, err)
		}
		if p := v.entry(e); p != nil {
			return v.failed(p), nil
		}
	}
	if p := v.end(); p != nil {
		return v.failed(p), nil
	}
	v.report.OK = true
	return v.report, nil
}

// pin is what signed checkpoints say of one entry.
type pin struct {
	Checkpoint
	count  int
	pinned int
}

type verifier struct {
	o      VerifyOptions
	pins   map[int64]pin
	newest int64 // the highest entry that a checkpoint names
	kept   int64 // the same of Pinned
	report Report
}

func (v *verifier) failed(p *Problem) Report {
	v.report.Problem = p
	return v.report
}

// checkpoints reads them. Two that disagree about one entry are proof of two
// chains.
func (v *verifier) checkpoints() *Problem {
	for i, jws := range slices.Concat(v.o.Pinned, v.o.Checkpoints) {
		c, err := v.o.Keys.Checkpoint(jws)
		if err != nil {
			return &Problem{Seq: c.Seq, What: "checkpoint", Expected: "a signature by a known key", Got: err.Error()}
		}
		if c.Tenant != v.o.Tenant {
			return &Problem{Seq: c.Seq, What: "checkpoint: tenant", Expected: string(v.o.Tenant), Got: string(c.Tenant)}
		}
		p, ok := v.pins[c.Seq]
		if !ok {
			p.Checkpoint = c
		} else if p.Hash != c.Hash {
			return &Problem{Seq: c.Seq, What: "checkpoint: another one for the same entry", Expected: p.Hash, Got: c.Hash}
		}
		p.count++
		if i < len(v.o.Pinned) {
			p.pinned++
			v.kept = max(v.kept, c.Seq)
		}
		v.pins[c.Seq] = p
		v.newest = max(v.newest, c.Seq)
	}
	return nil
}

func (v *verifier) entry(e Entry) *Problem {
	r := &v.report
	bad := func(what, expected, got string) *Problem { return &Problem{e.Seq, what, expected, got} }
	if r.Entries == 0 {
		if p := v.first(e); p != nil {
			return p
		}
	}
	if want := r.Last + 1; r.Entries > 0 && e.Seq != want {
		return &Problem{want, "seq", fmt.Sprint(want), fmt.Sprint(e.Seq)}
	}
	if e.Previous != r.Head {
		return bad("previous", r.Head, fmt.Sprintf("%.80q", e.Previous))
	}
	if want := Hash(v.o.Tenant, e.Seq, e.Previous, e.Body); e.Hash != want {
		return bad("hash", want+" of what the entry holds now", fmt.Sprintf("%.80q", e.Hash))
	}
	rec, err := DecodeRecord(e.Body)
	if err != nil {
		return bad("record", "a record", err.Error())
	}
	if rec.Tenant != v.o.Tenant {
		return bad("record: tenant", string(v.o.Tenant), string(rec.Tenant))
	}
	if p, ok := v.pins[e.Seq]; ok {
		if p.Hash != e.Hash {
			return bad("checkpoint of "+p.At.Format(time.RFC3339), p.Hash, e.Hash)
		}
		v.agrees(p)
	}
	if r.Entries == 0 {
		r.First, r.From = e.Seq, rec.At
	}
	r.Entries++
	r.Last, r.Head, r.To = e.Seq, e.Hash, rec.At
	return nil
}

// agrees counts a pin that the chain holds.
func (v *verifier) agrees(p pin) {
	v.report.Checkpoints += p.count
	v.report.Pinned += p.pinned
	v.report.LastCheckpoint = &p.Checkpoint
}

// first anchors the chain: it begins with entry 1, or where retention has
// removed its beginning, with an entry that was signed for or right after one.
func (v *verifier) first(e Entry) *Problem {
	r := &v.report
	if e.Seq == 1 {
		return nil
	}
	if v.o.Complete {
		return &Problem{e.Seq, "seq", "1", fmt.Sprint(e.Seq)}
	}
	if p, ok := v.pins[e.Seq-1]; ok {
		r.Anchor, r.Last, r.Head = &p.Checkpoint, p.Seq, p.Hash
		v.agrees(p)
		return nil
	}
	if p, ok := v.pins[e.Seq]; ok {
		// Its hash, which is compared with what was signed, covers Previous.
		r.Anchor, r.Last, r.Head = &p.Checkpoint, e.Seq-1, e.Previous
		return nil
	}
	return &Problem{e.Seq, "seq", "1, or an entry at or after a signed checkpoint", fmt.Sprint(e.Seq)}
}

func (v *verifier) end() *Problem {
	r := &v.report
	if v.newest > r.Last {
		p := v.pins[v.newest]
		return &Problem{v.newest, "cut off", fmt.Sprintf("an entry of hash %s, as signed at %s", p.Hash, p.At.Format(time.RFC3339)),
			fmt.Sprintf("a log that ends with entry %d", r.Last)}
	}
	if p := v.pins[v.kept]; v.kept > 0 && v.kept < r.First-1 {
		return &Problem{v.kept, "newest checkpoint that was kept elsewhere", fmt.Sprintf("an entry of hash %s, as signed at %s", p.Hash, p.At.Format(time.RFC3339)),
			fmt.Sprintf("a log that begins with entry %d: verify with a newer checkpoint, if retention has removed what was before", r.First)}
	}
	r.Expired = len(v.o.Pinned) + len(v.o.Checkpoints) - r.Checkpoints
	if r.LastCheckpoint != nil {
		r.Unsigned = r.Last - r.LastCheckpoint.Seq
	} else {
		r.Unsigned = r.Entries
	}
	return nil
}

// DecodeRecord reads an entry's body. It does not refuse members that it does
// not know: a newer trustee may have written them, and what a guest's claims
// hold is the guest's.
func DecodeRecord(body []byte) (Record, error) {
	var r Record
	if len(body) > MaxBody {
		return Record{}, fmt.Errorf("audit record: expected at most %d bytes, got %d", MaxBody, len(body))
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return Record{}, fmt.Errorf("audit record: %w", err)
	}
	if r.Kind == "" {
		return Record{}, errors.New("audit record: kind is missing")
	}
	return r, nil
}

// Lister lists entries, as the store and the administration API's client do.
type Lister func(ctx context.Context, t tenant.Name, q Query) ([]Entry, error)

// Pages walks a whole chain, oldest entry first. It reads a page at a time.
func Pages(ctx context.Context, list Lister, t tenant.Name) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		after := int64(FromStart)
		for {
			page, err := list(ctx, t, Query{After: after, Limit: MaxLimit})
			if err != nil {
				yield(Entry{}, err)
				return
			}
			for _, e := range page {
				if !yield(e, nil) {
					return
				}
			}
			if len(page) == 0 {
				return
			}
			last := page[len(page)-1].Seq
			if last <= after {
				yield(Entry{}, fmt.Errorf("expected entries after %d, got %d", after, last))
				return
			}
			after = last
		}
	}
}
