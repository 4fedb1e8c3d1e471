// Package explain renders an attestation result for a person: what each trust
// value means, which line of the policy set it, and what would change it. It
// looks at a token's claims and at the text of the policy, and asks nobody.
package explain

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/tee"
)

// BuiltIn ends the label of a policy that is part of the trustee.
const BuiltIn = " (built in)"

// Report explains one token.
type Report struct {
	Status  ear.Status `json:"status"`
	Submods []Submod   `json:"submods"`
}

// Submod explains one environment or device.
type Submod struct {
	Name   string     `json:"name"`
	Status ear.Status `json:"status"`
	// TEE is the environment's name, empty where the evidence does not say.
	TEE string `json:"tee,omitempty"`
	// Policy is the label of the policy that judged, Simulated whether the
	// evidence is of a software TEE.
	Policy     string      `json:"policy"`
	Simulated  bool        `json:"simulated"`
	Components []Component `json:"components"`
}

// Component explains one value of the trustworthiness vector.
type Component struct {
	Name    string     `json:"name"`
	Value   int8       `json:"value"`
	Status  ear.Status `json:"status"`
	Meaning string     `json:"meaning"`
	// SetBy are the lines of the policy that gave the value, most often one;
	// none where the policy's text is not known or the value is not its own.
	SetBy []Line `json:"set_by,omitempty"`
	// Findings are why the value is no better.
	Findings []ear.Finding `json:"findings,omitempty"`
	// Otherwise are the lines that would have given another value, where no
	// finding says what would.
	Otherwise []Line `json:"otherwise,omitempty"`
}

// Line is a line of a policy.
type Line struct {
	// Place is file and line, "snp.rego:42".
	Place string `json:"place"`
	Text  string `json:"text"`
}

// Explain explains claims. text is the policy that judged, for submodules
// whose policy is not built in; empty where it is not at hand.
func Explain(c *ear.Claims, text string) Report {
	out := Report{Status: c.Status()}
	names := slices.SortedFunc(maps.Keys(c.Submods), func(a, b string) int {
		// The CPU is what everything else hangs on.
		if (a == ear.CPU) != (b == ear.CPU) {
			if a == ear.CPU {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	known := library{}
	for _, name := range names {
		out.Submods = append(out.Submods, explainSubmod(name, c.Submods[name], text, known))
	}
	return out
}

// library remembers what policies say, so that each is read once however many
// submodules a token has. The key is the environment of a built-in policy, and
// empty for the one whose text is given.
type library map[environmentKey]map[string][]policy.Clause

type environmentKey struct {
	class tee.Class
	name  tee.Name
}

// clauses are those of the components, of the modules that modules returns.
func (l library) clauses(key environmentKey, modules func() []policy.Module) map[string][]policy.Clause {
	if c, ok := l[key]; ok {
		return c
	}
	c := map[string][]policy.Clause{}
	if m := modules(); len(m) > 0 {
		for _, name := range ear.Names() {
			c[name] = policy.Clauses(m, name)
		}
	}
	l[key] = c
	return c
}

func explainSubmod(name string, m ear.Submod, text string, known library) Submod {
	out := Submod{Name: name, Status: m.Status, Policy: m.Policy}
	if out.Policy == "" {
		out.Policy = m.PolicyID
	}
	out.TEE, out.Simulated = environment(m)
	var clauses map[string][]policy.Clause
	file := ""
	switch {
	case strings.HasSuffix(m.Policy, BuiltIn):
		key := environmentKey{tee.Class(strings.TrimRight(name, "0123456789")), tee.Name(out.TEE)}
		clauses = known.clauses(key, func() []policy.Module { return appraisal.BuiltIn(key.class, key.name) })
	case text != "":
		file, _, _ = strings.Cut(out.Policy, "@")
		file += ".rego"
		clauses = known.clauses(environmentKey{}, func() []policy.Module { return []policy.Module{{Name: "policy.rego", Text: text}} })
	}
	for _, c := range m.Vector.Components() {
		out.Components = append(out.Components, explainComponent(c, m.Findings, named(clauses[c.Name], file)))
	}
	return out
}

// named are the clauses with the name of the file that they are in; empty leaves
// them as they are.
func named(clauses []policy.Clause, file string) []policy.Clause {
	if file == "" {
		return clauses
	}
	clauses = slices.Clone(clauses)
	for i := range clauses {
		clauses[i].File = file
	}
	return clauses
}

func explainComponent(c ear.Component, findings []ear.Finding, clauses []policy.Clause) Component {
	out := Component{Name: c.Name, Value: c.Value, Status: c.Status, Meaning: ear.Meaning(c.Name, c.Value)}
	for _, f := range findings {
		if f.Affects == c.Name {
			out.Findings = append(out.Findings, f)
		}
	}
	exact, computed := pick(clauses, c.Value)
	switch {
	case len(exact) > 0:
		out.SetBy = exact
	case slices.ContainsFunc(out.Findings, func(f ear.Finding) bool { return f.Rule == appraisal.RuleSimulated }):
		// Lowered by the program, whatever the policy says.
	default:
		out.SetBy = computed
	}
	if c.Status != ear.Affirming && len(out.Findings) == 0 {
		for _, other := range clauses {
			if line := lineOf(other); !slices.Contains(out.SetBy, line) {
				out.Otherwise = append(out.Otherwise, line)
			}
		}
	}
	return out
}

// pick returns the clauses that give exactly this value, and those whose value
// is computed.
func pick(clauses []policy.Clause, value int8) (exact, computed []Line) {
	for _, c := range clauses {
		switch {
		case c.Value == strconv.Itoa(int(value)):
			exact = append(exact, lineOf(c))
		case c.Value == "" && !c.Default:
			computed = append(computed, lineOf(c))
		}
	}
	return exact, computed
}

func lineOf(c policy.Clause) Line { return Line{c.File + ":" + strconv.Itoa(c.Line), c.Text} }
