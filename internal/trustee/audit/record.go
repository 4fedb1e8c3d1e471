// Package audit is the trustee's compliance record: what was asked, judged,
// released, refused and administered, in one append-only chain per tenant.
// Every entry's hash covers its predecessor's, and signed checkpoints pin the
// chain's head, so that whoever kept a checkpoint notices a record that was
// changed, left out or cut off. Records hold claims and never secrets.
package audit

import (
	"encoding/json"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

// Kinds of record.
const (
	// KindAttestation is one handshake that came to a verdict.
	KindAttestation = "attestation"
	// KindResource is a decision on a stored resource or on a plugin's.
	KindResource = "resource"
	// KindAdmin is a change by an administrator, or a refused attempt at one.
	KindAdmin = "admin"
)

// MaxBody bounds one record, in bytes of JSON.
const MaxBody = 256 << 10

// Record is one event. Its JSON form is what is hashed, kept and shown.
type Record struct {
	// ID is 16 random bytes in hex, set by the store where it is empty: it
	// makes writing a record again after a lost connection harmless.
	ID     string      `json:"id"`
	At     time.Time   `json:"at"`
	Tenant tenant.Name `json:"tenant"`
	Kind   string      `json:"kind"`
	// Client is the network address a request came from.
	Client string `json:"client,omitempty"`

	TEE string `json:"tee,omitempty"`
	// Session names the handshake; it is also the jti of its token. It is no
	// credential.
	Session string `json:"session,omitempty"`
	// Challenged is when the handshake's challenge was sent.
	Challenged time.Time `json:"challenged,omitzero"`
	// Protocol is the handshake's KBS protocol version.
	Protocol string `json:"protocol,omitempty"`
	// Resource is a URI, kbs:///repository/type/tag or kbs+plugin:///path.
	Resource string `json:"resource,omitempty"`
	// Version is the resource's version that was released or stored.
	Version int64 `json:"version,omitempty"`

	// Subject, Role and Action say which administrator did what, for example
	// "resource.set".
	Subject string `json:"subject,omitempty"`
	Role    string `json:"role,omitempty"`
	Action  string `json:"action,omitempty"`

	Granted bool `json:"granted"`
	// Status is the HTTP status of the answer.
	Status int `json:"status"`
	// EARStatus is the worst status of the appraisal.
	EARStatus string `json:"ear_status,omitempty"`
	// Policy is the policy that decided, with its version: "default_cpu@3".
	Policy string `json:"policy,omitempty"`
	// Reasons say why it was refused, the weightiest first, and Detail in one line.
	Reasons []kbs.Reason `json:"reasons,omitempty"`
	Detail  string       `json:"detail,omitempty"`

	// InitData is the evidence's initdata field in hex: it names the workload.
	InitData       string `json:"initdata,omitempty"`
	Simulated      bool   `json:"simulated"`
	AllowSimulated bool   `json:"allow_simulated,omitempty"`
	// Claims are the attestation token's claims (attestation), without its
	// signature: a record is no credential.
	Claims json.RawMessage `json:"claims,omitempty"`
	// Data is what beside the claims a decision depended on (resource): the
	// policy's data document. With Claims it replays the decision.
	Data json.RawMessage `json:"data,omitempty"`
}

// Entry is a record in its place in the tenant's chain.
type Entry struct {
	// Seq counts from 1 without gaps.
	Seq int64 `json:"seq"`
	// Previous is the predecessor's hash; the first entry's is all zeros.
	Previous string `json:"previous"`
	// Hash is [Hash] of the entry, in hex.
	Hash string `json:"hash"`
	// Body is the record's JSON, byte for byte as it was hashed.
	Body json.RawMessage `json:"record"`
}

// Query narrows a listing. Zero fields do not.
type Query struct {
	Kind string
	// Resource matches the URI or a prefix of it that ends at a slash.
	Resource string
	// InitData matches the workload's digest or the first characters of it.
	InitData string
	Session  string
	Subject  string
	// Granted: nil matches both.
	Granted *bool
	// From and To are times, To excluded.
	From, To time.Time
	// Before lists entries with a lower sequence number, newest first; After
	// those with a higher one, oldest first. At most one may be set; neither
	// means newest first from the end. After may be [FromStart].
	Before, After int64
	// Limit is at most [MaxLimit]; 0 means [DefaultLimit].
	Limit int
}

// FromStart as [Query.After] lists oldest first from the first entry kept.
const FromStart = -1

// Limits of one listing.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
)
