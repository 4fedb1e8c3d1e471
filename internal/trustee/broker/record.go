package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

// What a record keeps at most of what is not ours to bound, in bytes of JSON.
// Together they stay below audit.MaxBody.
const (
	maxClaims  = 64 << 10
	maxData    = 64 << 10
	maxReasons = 32 << 10
	// maxDetail is in bytes of text.
	maxDetail = 4 << 10
)

// newRecord is a record of a request.
func (b *Broker) newRecord(r *http.Request, kind string, fill func(*audit.Record)) audit.Record {
	x := audit.Record{
		At: b.o.Now().UTC(), Tenant: tenant.Of(r.Context()), Kind: kind, Client: clip(b.o.ClientAddr(r)), AllowSimulated: b.o.AllowSimulated,
	}
	fill(&x)
	return x
}

// guestRecord is the record of a decision, as far as it is known before.
func (b *Broker) guestRecord(r *http.Request, p plugin.Plugin, req plugin.Request) audit.Record {
	return b.newRecord(r, audit.KindResource, func(x *audit.Record) {
		c := req.Claims
		x.Session, x.EARStatus, x.Protocol = clip(c.ID), string(c.Status()), clip(c.Protocol)
		x.TEE, x.InitData, x.Simulated = clip(teeOf(c)), req.InitData, req.Simulated
		x.Resource = resourceURI(p.Name(), req.Path)
	})
}

// resourceURI names a resource as guests do.
func resourceURI(name string, path []string) string {
	scheme := "kbs"
	if name != kbs.PluginResource {
		scheme += "+" + name
	}
	return scheme + ":///" + strings.Join(path, "/")
}

// refuse writes a refusal into a record.
func refuse(x *audit.Record, e *problem.Error) {
	x.Granted, x.Status, x.Detail = false, e.Status, clipDetail(e.Info.Detail)
	reasons := e.Info.Reasons
	if len(reasons) == 0 && e.Info.Reason != nil {
		reasons = []kbs.Reason{*e.Info.Reason}
	}
	size := 0
	for i, reason := range reasons {
		doc, err := json.Marshal(reason)
		if size += len(doc); err != nil || i > 0 && size > maxReasons {
			break
		}
		x.Reasons = append(x.Reasons, reason)
	}
}

// refused records and logs a refusal that depends on no state: a failure to
// store it changes nothing.
func (b *Broker) refused(r *http.Request, x audit.Record, e *problem.Error) {
	// The client may be gone; the record is made all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), recordTimeout)
	defer cancel()
	refuse(&x, e)
	b.logRefusal(ctx, &x)
	if errors.Is(e, store.ErrUnavailable) {
		return // it would wait in vain, and hold the answer up
	}
	if _, err := b.o.Store.Append(ctx, x.Tenant, x); err != nil {
		b.o.Logger.ErrorContext(ctx, "verdict could not be recorded", "error", err)
		return
	}
}

func (b *Broker) logRefusal(ctx context.Context, x *audit.Record) {
	rule := ""
	if len(x.Reasons) > 0 {
		rule = x.Reasons[0].Rule
	}
	b.o.Logger.WarnContext(ctx, "refused", "kind", x.Kind, "tenant", x.Tenant, "session", x.Session, "tee", x.TEE, "resource", x.Resource,
		"client", x.Client, "status", x.Status, "rule", rule, "detail", x.Detail, "simulated", x.Simulated)
}

// recordClaims are the token's claims as far as a record has room for them.
// What goes first is what the guest itself wrote.
func recordClaims(payload json.RawMessage) json.RawMessage {
	if fits(payload, maxClaims) {
		return payload
	}
	const evidence = "ear.veraison.annotated-evidence"
	for _, drop := range [][]string{{"init_data_claims", "runtime_data_claims"}, nil} {
		var doc map[string]any
		dec := json.NewDecoder(bytes.NewReader(payload))
		dec.UseNumber()
		if dec.Decode(&doc) != nil {
			return nil
		}
		submods, _ := doc["submods"].(map[string]any)
		for _, m := range submods {
			part, _ := m.(map[string]any)
			if drop == nil {
				delete(part, evidence)
				continue
			}
			claims, _ := part[evidence].(map[string]any)
			for _, name := range drop {
				delete(claims, name)
			}
		}
		// Whoever reads the record has to know that the token said more.
		doc["coffer.claims_omitted"] = true
		out, err := json.Marshal(doc)
		if err == nil && fits(out, maxClaims) {
			return out
		}
	}
	return nil
}

// recordData is a decision's data document, or nothing where it is too large.
func recordData(data json.RawMessage) json.RawMessage {
	if fits(data, maxData) {
		return data
	}
	return nil
}

// fits tells whether a document takes at most limit bytes of a record, where
// some characters are escaped.
func fits(doc json.RawMessage, limit int) bool {
	if len(doc) > limit {
		return false
	}
	out, err := json.Marshal(doc)
	return err == nil && len(out) <= limit
}

func clipDetail(s string) string {
	if len(s) > maxDetail {
		return strings.ToValidUTF8(s[:maxDetail], "") + "…"
	}
	return s
}

// plainText tells whether text can stand in a record and on a terminal.
func plainText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// simulated is true unless all evidence is of real hardware.
func simulated(c *ear.Claims) bool {
	for _, m := range c.Submods {
		if simulatedPart(m) {
			return true
		}
	}
	return len(c.Submods) == 0
}
