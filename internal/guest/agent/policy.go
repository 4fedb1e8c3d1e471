package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/podpolicy"
)

// guardFor makes the guard of the policy in initdata: a pod policy, or, in a
// guest that is built with the tag kata_policy, one of Kata's agent.
func guardFor(doc *initdata.Document) (*podpolicy.Guard, error) {
	bad := func(path, expected string, err error) error {
		return &podpolicy.Refusal{Rule: RuleInitdataContent, Path: "initdata." + path, Expected: expected, Got: clip(err.Error())}
	}
	text, typed := doc.Data[initdata.KeyPodPolicy]
	rego, foreign := doc.Data[initdata.KeyPolicyRego]
	switch {
	case foreign && typed:
		return nil, bad(initdata.KeyPolicyRego, "no such entry beside "+initdata.KeyPodPolicy, errors.New("two policies, of which one would not be enforced"))
	case foreign:
		guard, err := kataGuard(rego)
		if err != nil {
			return nil, bad(initdata.KeyPolicyRego, "a policy that this guest enforces", err)
		}
		return guard, nil
	case !typed:
		return nil, bad(initdata.KeyPodPolicy, "a pod policy", errors.New("no such entry"))
	}
	policy, err := podpolicy.Parse([]byte(text))
	if err != nil {
		return nil, bad(initdata.KeyPodPolicy, "a valid pod policy", err)
	}
	return podpolicy.NewGuard(policy), nil
}

// knownEntries refuses a document with an entry that the guest does not know: a
// misspelt cdh.toml would leave its image policy out without a word.
func knownEntries(doc *initdata.Document) error {
	known := []string{initdata.KeyAA, initdata.KeyCDH, initdata.KeyCoffer, initdata.KeyPodPolicy, initdata.KeyPolicyRego}
	for _, name := range slices.Sorted(maps.Keys(doc.Data)) {
		if !slices.Contains(known, name) {
			return &podpolicy.Refusal{
				Rule: RuleInitdataContent, Path: "initdata.data", Expected: "entries " + initdata.KeyAA + ", " + initdata.KeyCDH + ", " + initdata.KeyCoffer + " and " + initdata.KeyPodPolicy,
				Got: fmt.Sprintf("an entry %q, which this guest does not know", clip(name)),
			}
		}
	}
	return nil
}
