// Package admin is the client of the trustee's administration interface:
// resources and policies as the key broker protocol defines them, and
// Coffer's own reference values, bindings and verdicts. Its types are the
// interface's wire documents, for the server as well.
package admin

import (
	"encoding/json"
	"time"

	"github.com/coffer-project/coffer/kbs"
)

// Paths of the interface, below the server's URL.
const (
	ReferenceValuesPath = "/admin/v1/reference-values"
	BindingsPath        = "/admin/v1/bindings"
	VerdictsPath        = "/admin/v1/verdicts"
	ResourcesPath       = "/admin/v1/resources"
)

// Claims of the bearer token that authenticates an administrator (a JWT
// signed with EdDSA).
const (
	TokenIssuer   = "coffer"
	TokenAudience = "KBS"
	TokenRole     = "admin"
	// MaxTokenLifetime bounds exp - iat.
	MaxTokenLifetime = 2 * time.Hour
)

// ReferenceValue is what evidence is compared with.
type ReferenceValue struct {
	// Name is set in lists; in PUT it stands in the path.
	Name   string `json:"name,omitempty"`
	Values []any  `json:"values"`
	// Expires is when the value stops counting; nil: never.
	Expires *time.Time `json:"expires,omitempty"`
	// Inputs are the launch inputs (a measure.Inputs document) a launch
	// measurement was computed from. They let a refusal name what changed.
	Inputs      json.RawMessage `json:"inputs,omitempty"`
	Description string          `json:"description,omitempty"`
}

// Binding registers the initdata that may have a resource.
type Binding struct {
	// Resource is "repository", "repository/type" or "repository/type/tag".
	Resource string `json:"resource"`
	// InitData is the whole digest in lower-case hexadecimal, not fitted to
	// an evidence field.
	InitData    string `json:"initdata"`
	Description string `json:"description,omitempty"`
}

// The kinds of verdicts.
const (
	KindAttestation = "attestation"
	KindResource    = "resource"
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
