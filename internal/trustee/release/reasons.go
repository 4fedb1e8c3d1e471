package release

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/kbs"
)

// maxReasons bounds what a denial lists.
const maxReasons = 16

// prepared is one version of a policy, ready to decide.
type prepared struct {
	label  string
	policy *policy.Policy
}

// decide leaves Data out.
func (p *prepared) decide(ctx context.Context, in policy.Input, data Data, c *ear.Claims) (Decision, error) {
	d := Decision{PolicyID: p.label}
	doc := data.document()
	// Anything but the boolean true denies.
	var allow any
	if _, err := p.policy.Eval(ctx, ruleAllow, in, doc, &allow); err != nil {
		return Decision{}, err
	}
	if d.Granted = allow == true; d.Granted {
		return d, nil
	}
	var deny []reason
	if _, err := p.policy.Eval(ctx, ruleDeny, in, doc, &deny); err == nil {
		d.Reasons = ordered(deny)
	}
	if len(d.Reasons) == 0 {
		d.Reasons = fallback(p.label, c, data.Coffer.AllowSimulated)
	}
	return d, nil
}

// reason is an element of a policy's set deny.
type reason struct {
	Priority *float64 `json:"priority"`
	kbs.Reason
}

// ordered puts the weightiest reason first.
func ordered(deny []reason) []kbs.Reason {
	const unordered = 100
	priority := func(r reason) float64 {
		if r.Priority == nil {
			return unordered
		}
		return *r.Priority
	}
	slices.SortStableFunc(deny, func(a, b reason) int { return cmp.Compare(priority(a), priority(b)) })
	var out []kbs.Reason
	for _, r := range deny[:min(len(deny), maxReasons)] {
		if r.Rule == "" {
			r.Rule = PolicyID
		}
		out = append(out, r.Reason)
	}
	return out
}

// fallback explains the denial of a policy that explains nothing: by the
// appraisal's own findings.
func fallback(label string, c *ear.Claims, allowSimulated bool) []kbs.Reason {
	r := kbs.Reason{
		Rule: PolicyID, Claim: "data.policy.allow", Expected: "true", Got: "false or undefined",
		Help: "the operator's resource policy " + label + " refuses and gives no reason: it may define a set `deny` of objects with rule, claim, expected, got and help",
	}
	out := []kbs.Reason{r}
	for _, name := range slices.Sorted(maps.Keys(c.Submods)) {
		for _, f := range c.Submods[name].Findings {
			if allowSimulated && f.Rule == appraisal.RuleSimulated {
				continue // tolerated by configuration: it is not why
			}
			out = append(out, f.Reason)
		}
	}
	return out[:min(len(out), maxReasons)]
}
