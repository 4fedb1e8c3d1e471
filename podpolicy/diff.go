package podpolicy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Difference is one thing in which two policies mean something else.
type Difference struct {
	// Path in the policy. Containers are named, not numbered
	// (containers.web.args), and so are mounts and devices (by their path) and
	// the members of sets (by themselves).
	Path string `json:"path"`
	// Old and New are JSON; empty where the policy has nothing.
	Old string `json:"old,omitempty"`
	New string `json:"new,omitempty"`
}

// String is the difference in one line.
func (d Difference) String() string {
	switch {
	case d.Old == "":
		return fmt.Sprintf("%s: added %s", d.Path, d.New)
	case d.New == "":
		return fmt.Sprintf("%s: removed %s", d.Path, d.Old)
	}
	return fmt.Sprintf("%s: %s is now %s", d.Path, d.Old, d.New)
}

// Diff lists in what two policies differ in meaning, by path, sorted. Spelling
// is no difference: defaults, quantities and the order of what has none. A nil
// policy is one that has nothing. Both are left as they are; they need not be
// valid.
func Diff(a, b *Policy) []Difference {
	d := &differ{}
	old, errOld := tree(a)
	now, errNew := tree(b)
	if errOld != nil || errNew != nil {
		// Too large to be a policy: it can only be named.
		return []Difference{{"", errorText(errOld), errorText(errNew)}}
	}
	d.order(a, b)
	d.compare("", "", old, now)
	slices.SortStableFunc(d.found, func(x, y Difference) int { return strings.Compare(x.Path, y.Path) })
	return d.found
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return jsonText(err.Error())
}

// tree is a policy's normal form as plain JSON values.
func tree(p *Policy) (any, error) {
	if p == nil {
		return nil, nil
	}
	c, err := p.clone()
	if err != nil {
		return nil, err
	}
	c.normalise()
	data, err := encode(c, "")
	if err != nil {
		return nil, err
	}
	var v any
	return v, json.Unmarshal(data, &v)
}

type differ struct{ found []Difference }

// order reports init containers and sidecars of both policies that start in
// another order; that of app containers means nothing.
func (d *differ) order(a, b *Policy) {
	if a == nil || b == nil {
		return
	}
	before, after := startOrder(a), startOrder(b)
	both := func(other []string) func(string) bool {
		return func(name string) bool { return !slices.Contains(other, name) }
	}
	x := slices.DeleteFunc(slices.Clone(before), both(after))
	y := slices.DeleteFunc(slices.Clone(after), both(before))
	if !slices.Equal(x, y) {
		d.found = append(d.found, Difference{"containers", jsonText(before), jsonText(after)})
	}
}

func startOrder(p *Policy) []string {
	var names []string
	for _, c := range p.Containers {
		if c.Role == RoleInit || c.Role == RoleSidecar {
			names = append(names, c.Name)
		}
	}
	return names
}

// compare walks two values at one path; field is the member's name there.
func (d *differ) compare(path, field string, a, b any) {
	if a == nil && b == nil {
		return
	}
	x, okX := members(path, field, a)
	y, okY := members(path, field, b)
	if okX && okY && len(x)+len(y) > 0 {
		names := slices.Sorted(maps.Keys(x))
		for name := range y {
			if _, twice := x[name]; !twice {
				names = append(names, name)
			}
		}
		for _, name := range names {
			d.compare(strings.TrimPrefix(keyPath(path, name), "."), name, x[name], y[name])
		}
		return
	}
	if before, after := leaf(a), leaf(b); before != after {
		d.found = append(d.found, Difference{path, before, after})
	}
}

// members are what a value consists of: the members of an object, or of a list
// whose order means nothing, by name. Nothing has no members.
func members(path, field string, v any) (map[string]any, bool) {
	switch v := v.(type) {
	case nil:
		return nil, true
	case map[string]any:
		return v, true
	case []any:
		name := listKey(path, field)
		if name == nil {
			return nil, false
		}
		m := make(map[string]any, len(v))
		for _, e := range v {
			m[name(e)] = e
		}
		return m, true
	}
	return nil, false
}

// listKey says by what the entries of a list without order are told apart.
func listKey(path, field string) func(any) string {
	if field == "from" && !strings.HasSuffix(path, ".copy.from") {
		return nil // the first repository of an image is where it comes from
	}
	member := func(name string) func(any) string {
		return func(e any) string {
			o, _ := e.(map[string]any)
			s, _ := o[name].(string)
			return s
		}
	}
	switch field {
	case "containers":
		return member("name")
	case "mounts", "devices":
		return member("path")
	case "exec":
		return func(e any) string {
			if o, ok := e.(map[string]any); ok {
				return jsonText(o["args"])
			}
			return jsonText(e)
		}
	case "capabilities", "serviceEnv", "portForward", "signals", "from", "to", "groups", "names":
		return func(e any) string {
			if s, ok := e.(string); ok {
				return s
			}
			return jsonText(e)
		}
	}
	return nil
}

func leaf(v any) string {
	if v == nil {
		return ""
	}
	return jsonText(v)
}

func jsonText(v any) string {
	data, err := encode(v, "")
	if err != nil {
		return err.Error()
	}
	return string(data)
}
