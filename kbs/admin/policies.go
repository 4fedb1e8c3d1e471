package admin

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/coffer-project/coffer/kbs"
)

// SetResourcePolicy replaces the Rego policy that releases all resources for
// which there is no more specific one.
func (c *Client) SetResourcePolicy(ctx context.Context, rego string) error {
	policy, err := encodePolicy(rego)
	if err != nil {
		return err
	}
	return c.send(ctx, http.MethodPost, kbs.PathPrefix+"/resource-policy", map[string]string{"policy": policy})
}

// SetAttestationPolicy replaces the Rego policy with an id ("default_cpu")
// that appraises evidence.
func (c *Client) SetAttestationPolicy(ctx context.Context, id, rego string) error {
	if id == "" || len(id) > maxNameBytes {
		return fmt.Errorf("kbs admin: policy id: expected 1 to %d bytes, got %d", maxNameBytes, len(id))
	}
	policy, err := encodePolicy(rego)
	if err != nil {
		return err
	}
	return c.send(ctx, http.MethodPost, kbs.PathPrefix+"/attestation-policy",
		map[string]string{"type": "rego", "policy_id": id, "policy": policy})
}

// encodePolicy is how the protocol carries Rego: unpadded base64url.
func encodePolicy(rego string) (string, error) {
	if err := checkText(rego); err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString([]byte(rego)), nil
}

func checkText(rego string) error {
	if n := len(rego); n == 0 || n > MaxPolicyBytes {
		return fmt.Errorf("kbs admin: policy: expected 1 to %d bytes, got %d", MaxPolicyBytes, n)
	}
	return nil
}

// policyPath is the path and query of a policy, or of its versions.
func policyPath(kind, id string, versions bool) (string, url.Values, error) {
	path, q := PoliciesPath+"/"+kind, url.Values{}
	switch kind {
	case PolicyResource:
		q.Set("scope", id)
	case PolicyAttestation:
		if id == "" || len(id) > maxNameBytes || url.PathEscape(id) != id {
			return "", nil, fmt.Errorf("kbs admin: policy id %.64q: expected name_class, for example default_cpu", id)
		}
		path += "/" + id
	default:
		return "", nil, fmt.Errorf("kbs admin: policy kind: expected %s or %s, got %.64q", PolicyAttestation, PolicyResource, kind)
	}
	if versions {
		path += "/versions"
	}
	return path, q, nil
}

// Policies describes the newest versions of the stored policies of a kind.
func (c *Client) Policies(ctx context.Context, kind string) ([]PolicyInfo, error) {
	if kind != PolicyAttestation && kind != PolicyResource {
		return nil, fmt.Errorf("kbs admin: policy kind: expected %s or %s, got %.64q", PolicyAttestation, PolicyResource, kind)
	}
	return list[PolicyInfo](ctx, c, PoliciesPath+"/"+kind, nil)
}

// Policy gets a policy's text; version 0 is what is in force, which can be
// the built-in policy and has version 0 then.
func (c *Client) Policy(ctx context.Context, kind, id string, version int64) (Policy, error) {
	path, q, err := policyPath(kind, id, false)
	if err != nil {
		return Policy{}, err
	}
	if version != 0 {
		q.Set("version", strconv.FormatInt(version, 10))
	}
	a, err := c.do(ctx, call{method: http.MethodGet, path: withQuery(path, q), maxBytes: MaxPolicyBytes})
	if err != nil {
		return Policy{}, err
	}
	p := Policy{PolicyInfo: PolicyInfo{Kind: kind, ID: id}, Text: string(a.body)}
	p.Version, err = versionOf(a, HeaderPolicyVersion)
	return p, err
}

// PolicyVersions lists a policy's versions, newest first.
func (c *Client) PolicyVersions(ctx context.Context, kind, id string) ([]PolicyInfo, error) {
	path, q, err := policyPath(kind, id, true)
	if err != nil {
		return nil, err
	}
	return array[PolicyInfo](ctx, c, withQuery(path, q))
}

// SetPolicy stores a new version of a policy.
func (c *Client) SetPolicy(ctx context.Context, kind, id, rego string) (PolicyInfo, error) {
	path, q, err := policyPath(kind, id, false)
	if err != nil {
		return PolicyInfo{}, err
	}
	if err := checkText(rego); err != nil {
		return PolicyInfo{}, err
	}
	op := withQuery(path, q)
	a, err := c.do(ctx, call{method: http.MethodPut, path: op, contentType: "text/plain; charset=utf-8", body: []byte(rego)})
	if err != nil {
		return PolicyInfo{}, err
	}
	var out PolicyInfo
	err = decode("PUT "+op, a.body, &out, "JSON document")
	return out, err
}

// DeletePolicy removes a policy: a less specific one or the built-in one is
// in force again. Its versions stay on record.
func (c *Client) DeletePolicy(ctx context.Context, kind, id string) error {
	path, q, err := policyPath(kind, id, false)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, call{method: http.MethodDelete, path: withQuery(path, q)})
	return err
}

// CheckPolicy tells whether a text could be stored, and stores nothing.
func (c *Client) CheckPolicy(ctx context.Context, p PolicyCheck) (PolicyProblems, error) {
	if err := checkText(p.Text); err != nil {
		return PolicyProblems{}, err
	}
	return exchange[PolicyProblems](ctx, c, http.MethodPost, PolicyCheckPath, p)
}

// Explain replays a recorded decision.
func (c *Client) Explain(ctx context.Context, r ExplainRequest) (Explanation, error) {
	if (r.Seq == 0) == (r.ID == "") {
		return Explanation{}, fmt.Errorf("kbs admin: explain: expected a record's sequence number or its id")
	}
	return exchange[Explanation](ctx, c, http.MethodPost, ExplainPath, r)
}
