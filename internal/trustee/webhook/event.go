package webhook

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

// Types of event.
const (
	// AttestationFailed: evidence was refused, or appraised as anything but
	// affirming, in which case a token was issued that says so.
	AttestationFailed = "attestation.failed"
	// AttestationSucceeded: evidence was appraised as affirming.
	AttestationSucceeded = "attestation.succeeded"
	// ResourceDenied and ResourceReleased are decisions on resources and plugins.
	ResourceDenied   = "resource.denied"
	ResourceReleased = "resource.released"
	// AdminRefused and AdminChanged are attempts of administrators.
	AdminRefused = "admin.refused"
	AdminChanged = "admin.changed"
)

// Types lists them.
func Types() []string {
	return []string{AttestationFailed, AttestationSucceeded, ResourceDenied, ResourceReleased, AdminRefused, AdminChanged}
}

// affirming is the EAR status of evidence that is as it should be (AR4SI).
const affirming = "affirming"

// Delivery is the body of a POST.
type Delivery struct {
	// Version of this format, 1.
	Version int `json:"version"`
	// ID is the same when a delivery is repeated.
	ID     string      `json:"id"`
	Tenant tenant.Name `json:"tenant"`
	// Events are in the order in which they happened.
	Events []Event `json:"events"`
}

// Event is an audit record without its claims and the policy's data.
type Event struct {
	// ID is the record's; an event that is delivered again has the same one.
	ID string `json:"id"`
	// Seq is the record's place in the tenant's audit chain.
	Seq  int64     `json:"seq"`
	Type string    `json:"type"`
	At   time.Time `json:"at"`

	Client    string       `json:"client,omitempty"`
	TEE       string       `json:"tee,omitempty"`
	Session   string       `json:"session,omitempty"`
	Resource  string       `json:"resource,omitempty"`
	Subject   string       `json:"subject,omitempty"`
	Role      string       `json:"role,omitempty"`
	Action    string       `json:"action,omitempty"`
	Granted   bool         `json:"granted"`
	Status    int          `json:"status"`
	EARStatus string       `json:"ear_status,omitempty"`
	Policy    string       `json:"policy,omitempty"`
	Reasons   []kbs.Reason `json:"reasons,omitempty"`
	Detail    string       `json:"detail,omitempty"`
	InitData  string       `json:"initdata,omitempty"`
	Simulated bool         `json:"simulated"`
	// Truncated: some text was cut; the audit log has all of it.
	Truncated bool `json:"truncated,omitempty"`
}

// typeOf names what a record is about, empty for a kind that is not known.
func typeOf(r *audit.Record) string {
	switch {
	case r.Kind == audit.KindAttestation && r.Granted && r.EARStatus == affirming:
		return AttestationSucceeded
	case r.Kind == audit.KindAttestation:
		return AttestationFailed
	case r.Kind == audit.KindResource && r.Granted:
		return ResourceReleased
	case r.Kind == audit.KindResource:
		return ResourceDenied
	case r.Kind == audit.KindAdmin && r.Granted:
		return AdminChanged
	case r.Kind == audit.KindAdmin:
		return AdminRefused
	}
	return ""
}

// record is what is read of an audit record: neither claims nor data.
type record struct {
	audit.Record

	Claims ignored `json:"claims"`
	Data   ignored `json:"data"`
}

// ignored takes any JSON value and keeps none of it.
type ignored struct{}

// UnmarshalJSON implements json.Unmarshaler.
func (ignored) UnmarshalJSON([]byte) error { return nil }

// parse makes an event of an entry. The entry was written by the trustee; a
// field that a newer version added is ignored.
func parse(e audit.Entry) (Event, error) {
	if len(e.Body) > audit.MaxBody {
		return Event{}, fmt.Errorf("audit entry %d: expected at most %d bytes, got %d", e.Seq, audit.MaxBody, len(e.Body))
	}
	var r record
	if err := json.Unmarshal(e.Body, &r); err != nil {
		return Event{}, fmt.Errorf("audit entry %d: %w", e.Seq, err)
	}
	ev := Event{
		ID: r.ID, Seq: e.Seq, Type: typeOf(&r.Record), At: r.At, Client: r.Client, TEE: r.TEE, Session: r.Session, Resource: r.Resource,
		Subject: r.Subject, Role: r.Role, Action: r.Action, Granted: r.Granted, Status: r.Status, EARStatus: r.EARStatus,
		Policy: r.Policy, Reasons: r.Reasons, Detail: r.Detail, InitData: r.InitData, Simulated: r.Simulated,
	}
	ev.bound()
	return ev, nil
}

// Limits of an event: reasons list all registered reference values.
const (
	maxReasons = 8
	maxText    = 1 << 10
)

func (e *Event) bound() {
	if len(e.Reasons) > maxReasons {
		e.Reasons, e.Truncated = slices.Clone(e.Reasons[:maxReasons]), true
	}
	for i := range e.Reasons {
		r := &e.Reasons[i]
		for _, s := range []*string{&r.Rule, &r.Claim, &r.Expected, &r.Got, &r.Help} {
			e.clip(s)
		}
	}
	for _, s := range []*string{&e.Client, &e.TEE, &e.Session, &e.Resource, &e.Subject, &e.Role, &e.Action, &e.EARStatus, &e.Policy, &e.Detail, &e.InitData} {
		e.clip(s)
	}
}

func (e *Event) clip(s *string) {
	if len(*s) <= maxText {
		return
	}
	cut := maxText
	for cut > maxText-utf8.UTFMax && !utf8.RuneStart((*s)[cut]) {
		cut--
	}
	*s, e.Truncated = (*s)[:cut]+"…", true
}
