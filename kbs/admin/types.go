// Package admin is the client of the trustee's administration interface:
// resources and policies as the key broker protocol defines them, and
// Coffer's own versions, scopes, reference values, bindings, records, tenants
// and administrators. Its types are the interface's wire documents, for the
// server as well.
//
// Lists are bare JSON arrays. With ?limit= they are pages: the header
// [HeaderNext] then holds what ?after= continues with, and its absence says
// that the list is complete. Without a limit a list is whole.
package admin

import (
	"encoding/json"
	"time"

	"github.com/coffer-project/coffer/kbs"
)

// Paths of the interface, below the tenant's URL.
const (
	ResourcesPath        = "/admin/v1/resources"
	ResourceVersionsPath = ResourcesPath + "/versions"
	PoliciesPath         = "/admin/v1/policies"
	PolicyCheckPath      = PoliciesPath + "/check"
	ExplainPath          = "/admin/v1/explain"
	ReferenceValuesPath  = "/admin/v1/reference-values"
	ReferenceHistoryPath = "/admin/v1/reference-history"
	ProvenancePath       = "/admin/v1/provenance"
	BindingsPath         = "/admin/v1/bindings"
	VerdictsPath         = "/admin/v1/verdicts"
	AuditPath            = "/admin/v1/audit"
	CheckpointsPath      = AuditPath + "/checkpoints"
	AuditKeysPath        = AuditPath + "/keys"
	AdminsPath           = "/admin/v1/admins"
	TenantsPath          = "/admin/v1/tenants"
	TokenKeysPath        = "/admin/v1/token-keys"
	RotatePath           = TokenKeysPath + "/rotate"
	BackupPath           = "/admin/v1/backup"
	WhoAmIPath           = "/admin/v1/whoami"
	StatusPath           = "/admin/v1/status"
)

// Headers of answers.
const (
	// HeaderNext is what ?after= continues a page of a list with.
	HeaderNext = "Coffer-Next"
	// HeaderResourceVersion is the version that a resource was stored as.
	HeaderResourceVersion = "Coffer-Resource-Version"
	// HeaderPolicyVersion is the version of a policy's text; 0 is the built-in
	// policy.
	HeaderPolicyVersion = "Coffer-Policy-Version"
)

// Claims of the bearer token that authenticates an administrator (a JWT
// signed with EdDSA).
const (
	TokenIssuer   = "coffer"
	TokenAudience = "KBS"
	TokenRole     = RoleAdmin
	// MaxTokenLifetime bounds exp - iat.
	MaxTokenLifetime = 2 * time.Hour
)

// Roles of administrators.
const (
	// RoleAdmin may everything, in the tenants it is for.
	RoleAdmin = "admin"
	// RolePolicyAuthor writes policies and reference values and explains decisions.
	RolePolicyAuthor = "policy-author"
	// RoleSecretWriter writes resources and bindings.
	RoleSecretWriter = "secret-writer"
	// RoleAuditor reads everything but contents.
	RoleAuditor = "auditor"
)

// ResourceInfo describes a version of a resource, without its content.
type ResourceInfo struct {
	// Path is "repository/type/tag".
	Path string `json:"path"`
	// Version counts from 1.
	Version int64 `json:"version"`
	// Size is in bytes, -1 where the backend does not tell.
	Size    int       `json:"size"`
	Created time.Time `json:"created"`
	// Deleted: the version marks a deletion.
	Deleted bool `json:"deleted,omitempty"`
}

// ReferenceValue is what evidence is compared with.
type ReferenceValue struct {
	// Name is set in lists; in PUT it stands in the path or the query.
	Name string `json:"name,omitempty"`
	// Scalar: policies see the one value itself, not a list.
	Scalar bool  `json:"scalar,omitempty"`
	Values []any `json:"values"`
	// Expires is when the value stops counting; nil: never.
	Expires *time.Time `json:"expires,omitempty"`
	// Inputs are the launch inputs (a measure.Inputs document) a launch
	// measurement was computed from. They let a refusal name what changed.
	Inputs      json.RawMessage `json:"inputs,omitempty"`
	Description string          `json:"description,omitempty"`
	// Entries are the values each with its own description and expiry. Only
	// answers have them.
	Entries []ReferenceEntry `json:"entries,omitempty"`
}

// ReferenceEntry is one value of a reference.
type ReferenceEntry struct {
	Value       json.RawMessage `json:"value"`
	Description string          `json:"description,omitempty"`
	Inputs      json.RawMessage `json:"inputs,omitempty"`
	// Source says which provenance the value came from.
	Source  string    `json:"source,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Created time.Time `json:"created,omitzero"`
}

// ReferenceVersion is what was registered under a name at one time.
type ReferenceVersion struct {
	Version int64     `json:"version"`
	Created time.Time `json:"created"`
	// Deleted: the reference was deleted by this version.
	Deleted bool             `json:"deleted,omitempty"`
	Scalar  bool             `json:"scalar,omitempty"`
	Entries []ReferenceEntry `json:"entries,omitempty"`
}

// Registered answers a provenance message.
type Registered struct {
	// Names of the reference values that the message set.
	Names []string `json:"names"`
}

// Binding registers the initdata that may have a resource.
type Binding struct {
	// Resource is "repository", "repository/type" or "repository/type/tag"; a
	// plugin's resources are "+plugin", "+plugin/segment" and so on.
	Resource string `json:"resource"`
	// InitData is the whole digest in lower-case hexadecimal, not fitted to
	// an evidence field.
	InitData    string `json:"initdata"`
	Description string `json:"description,omitempty"`
}

// The kinds of verdicts, and of records.
const (
	KindAttestation = "attestation"
	KindResource    = "resource"
	KindAdmin       = "admin"
)

// Verdict is one decision of the trustee.
type Verdict struct {
	At      time.Time `json:"at"`
	Kind    string    `json:"kind"`
	TEE     string    `json:"tee,omitempty"`
	Session string    `json:"session,omitempty"`
	// Resource is the path asked for, "" for an attestation.
	Resource string `json:"resource,omitempty"`
	Granted  bool   `json:"granted"`
	// Status is the HTTP status that was answered.
	Status int `json:"status"`
	// EARStatus is the worst status of the appraisal: affirming, warning,
	// contraindicated or none.
	EARStatus string      `json:"ear_status,omitempty"`
	Reason    *kbs.Reason `json:"reason,omitempty"`
	Detail    string      `json:"detail,omitempty"`
	// Claims are those the decision looked at, never a secret.
	Claims json.RawMessage `json:"claims,omitempty"`
	// InitData is the evidence's field in hexadecimal.
	InitData string `json:"initdata,omitempty"`
	// Simulated is true when the evidence came from a development root.
	Simulated bool `json:"simulated"`
	// AllowSimulated: simulated evidence was tolerated by configuration.
	AllowSimulated bool `json:"allow_simulated,omitempty"`
	// Policy is the id of the attestation policy.
	Policy string `json:"policy,omitempty"`
}

// VerdictQuery selects verdicts, newest first.
type VerdictQuery struct {
	// Limit is the most to return; 0 leaves it to the server.
	Limit int
	// Session selects one handshake; "" selects all.
	Session string
}
