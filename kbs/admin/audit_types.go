package admin

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/kbs"
)

// AuditEntry is a record in its place in the tenant's chain.
type AuditEntry struct {
	// Seq counts from 1 without gaps.
	Seq int64 `json:"seq"`
	// Previous is the predecessor's hash; the first entry's is all zeros.
	Previous string `json:"previous"`
	// Hash covers Previous, Seq, the tenant and Body.
	Hash string `json:"hash"`
	// Body is the record, byte for byte as it was hashed.
	Body json.RawMessage `json:"record"`
}

// AuditEntries is a page of the record.
type AuditEntries struct {
	Entries []AuditEntry `json:"entries"`
}

// Record reads the entry's body. Members of newer trustees are ignored.
func (e AuditEntry) Record() (AuditRecord, error) {
	var r AuditRecord
	if err := json.Unmarshal(e.Body, &r); err != nil {
		return AuditRecord{}, fmt.Errorf("kbs admin: audit entry %d: %w", e.Seq, err)
	}
	return r, nil
}

// AuditRecord is one event: a handshake, a decision on a resource, or what an
// administrator did. It never holds a secret.
type AuditRecord struct {
	ID     string    `json:"id"`
	At     time.Time `json:"at"`
	Tenant string    `json:"tenant"`
	// Kind is [KindAttestation], [KindResource] or [KindAdmin].
	Kind string `json:"kind"`
	// Client is the network address the request came from.
	Client string `json:"client,omitempty"`

	TEE        string    `json:"tee,omitempty"`
	Session    string    `json:"session,omitempty"`
	Challenged time.Time `json:"challenged,omitzero"`
	Protocol   string    `json:"protocol,omitempty"`
	// Resource is a URI: kbs:///repository/type/tag, kbs+plugin:///path, or
	// coffer:///… for what else administrators change.
	Resource string `json:"resource,omitempty"`
	Version  int64  `json:"version,omitempty"`

	// Subject, Role and Action say which administrator did what.
	Subject string `json:"subject,omitempty"`
	Role    string `json:"role,omitempty"`
	Action  string `json:"action,omitempty"`

	Granted bool `json:"granted"`
	// Status is the HTTP status of the answer.
	Status    int          `json:"status"`
	EARStatus string       `json:"ear_status,omitempty"`
	Policy    string       `json:"policy,omitempty"`
	Reasons   []kbs.Reason `json:"reasons,omitempty"`
	Detail    string       `json:"detail,omitempty"`

	InitData       string          `json:"initdata,omitempty"`
	Simulated      bool            `json:"simulated"`
	AllowSimulated bool            `json:"allow_simulated,omitempty"`
	Claims         json.RawMessage `json:"claims,omitempty"`
	Data           json.RawMessage `json:"data,omitempty"`
}

// AuditQuery narrows a listing of the record. Zero fields do not.
type AuditQuery struct {
	Kind string
	// Resource matches the URI or a prefix of it that ends at a slash.
	Resource string
	// InitData matches the workload's digest or the first characters of it.
	InitData string
	Session  string
	Subject  string
	Granted  *bool
	// From and To are times, To excluded.
	From, To time.Time
	// Before lists entries with a lower sequence number, newest first; After
	// those with a higher one, oldest first; neither: newest first.
	Before, After int64
	// Limit is at most 1000; 0 leaves it to the server.
	Limit int
}

// Checkpoint pins the head of a tenant's chain.
type Checkpoint struct {
	Seq int64     `json:"seq"`
	At  time.Time `json:"at"`
	// JWS is signed by one of the keys of [Client.AuditKeys].
	JWS string `json:"jws"`
}
