package podpolicy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Variables that a container has when neither policy nor image says otherwise,
// as every container engine sets them. Together with the image and the policy
// they are all there is.
const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "xterm"
)

// givenEnv is parseEnv for a list that may be absent.
func givenEnv(list *[]string) (map[string]string, *Refusal) {
	if list == nil {
		return nil, nil
	}
	return parseEnv("env", *list)
}

// parseEnv reads a proposal's environment.
func parseEnv(path string, list []string) (map[string]string, *Refusal) {
	if len(list) > maxEnv {
		return nil, tooMany(RuleProposalForm, path, maxEnv, len(list))
	}
	env := make(map[string]string, len(list))
	total := 0
	for i, e := range list {
		name, value, ok := strings.Cut(e, "=")
		if total += len(e); total > maxEnvBytes {
			return nil, refuse(RuleProposalForm, path, fmt.Sprintf("at most %d bytes", maxEnvBytes), "more", "")
		}
		if !ok || !isEnvName(name) || strings.IndexByte(value, 0) >= 0 {
			return nil, refuse(RuleProposalForm, indexPath(path, i), "NAME=VALUE without NUL", quote(e), "")
		}
		if env[name] = value; len(env) != i+1 {
			return nil, refuse(RuleProposalForm, indexPath(path, i), "each name once", quote(name), "")
		}
	}
	return env, nil
}

// environment is an ordered set of variables in the making: the image's, then
// the policy's by name, the engines', and services'. Each is a slice, looked
// through from its start: there are few, and no index to fill.
type environment struct {
	vars []EnvVar
	// image is how many of vars have an image's name.
	image int
	// own says of each variable whether it is the policy's or a service's.
	own []bool
}

// inImage finds a variable that the image has; -1 if there is none.
func (e *environment) inImage(name string) int {
	for i := range e.image {
		if e.vars[i].Name == name {
			return i
		}
	}
	return -1
}

func (e *environment) set(v *EnvVar, own bool) {
	if i := e.inImage(v.Name); i >= 0 {
		e.vars[i], e.own[i] = *v, own
		return
	}
	e.vars, e.own = append(e.vars, *v), append(e.own, own)
}

// variable finds a variable that a reference may lead to; nil if there is none.
func (e *environment) variable(name string) *EnvVar {
	for i := range e.vars {
		if e.own[i] && e.vars[i].Name == name {
			return &e.vars[i]
		}
	}
	return nil
}

// imageEnv reads the environment of an image; the last of equal names counts.
// There will be room for n more variables.
func imageEnv(list []string, n int) (*environment, *Refusal) {
	if len(list) > maxEnv {
		return nil, tooMany(RuleImageConfig, "image.env", maxEnv, len(list))
	}
	room := len(list) + n
	e := &environment{vars: make([]EnvVar, 0, room), own: make([]bool, 0, room)}
	total := 0
	for i, entry := range list {
		name, value, ok := strings.Cut(entry, "=")
		total += len(entry)
		if !ok || !isEnvName(name) || strings.IndexByte(value, 0) >= 0 || total > maxEnvBytes {
			return nil, refuse(RuleImageConfig, indexPath("image.env", i), fmt.Sprintf("NAME=VALUE, at most %d bytes in all", maxEnvBytes), quote(name), "build the image again without this entry")
		}
		e.set(&EnvVar{Name: name, Value: value}, false)
		e.image = len(e.vars)
	}
	return e, nil
}

// namedValue is a variable of the policy.
type namedValue struct {
	name  string
	value EnvValue
}

func sortedEnv(env map[string]EnvValue) []namedValue {
	list := make([]namedValue, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, namedValue{name, env[name]})
	}
	return list
}

// slotValues fills slots, and holds each to one value in the life of the pod.
type slotValues struct {
	fixed map[Slot]string // not written to: a copy takes its place
	sent  map[string]string
}

// take notes a value that the host gave at path.
func (v *slotValues) take(s Slot, path, value string) *Refusal {
	if r := checkSlot(s, path, value); r != nil {
		return r
	}
	old, ok := v.fixed[s]
	if ok && old != value {
		return refuse(RuleSlotChanged, path, quote(old), quote(value), "a slot has one value in the life of a pod")
	}
	if !ok {
		v.fixed = with(v.fixed, s, value)
	}
	return nil
}

// value finds a slot's value: in the proposal's environment, in its slots, or
// among what the pod knows already.
func (v *slotValues) value(s Slot, name string, env map[string]string) (string, *Refusal) {
	if sent, ok := v.sent[string(s)]; ok {
		if r := v.take(s, keyPath("slots", string(s)), sent); r != nil {
			return "", r
		}
	}
	if given, ok := env[name]; ok {
		if r := v.take(s, keyPath("env", name), given); r != nil {
			return "", r
		}
	}
	if known, ok := v.fixed[s]; ok {
		return known, nil
	}
	form := "a value"
	if spec := s.spec(); spec != nil {
		form = spec.form
	}
	return "", refuse(RuleSlotMissing, keyPath("slots", string(s)), form, nothing, "variable "+quote(name)+" needs it")
}

func checkSlots(sent map[string]string) *Refusal {
	for _, s := range slices.Sorted(maps.Keys(sent)) {
		if r := checkSlot(Slot(s), keyPath("slots", s), sent[s]); r != nil {
			return r
		}
	}
	return nil
}

// resolveEnv makes the effective environment: the image's in its order, the
// policy's by name, then services' by name. A proposal's environment (given,
// nil if there is none) must agree with it in both directions. sorted is c.Env.
func resolveEnv(c *Container, sorted []namedValue, image []string, hostname string, given, sent map[string]string, known map[Slot]string) (*environment, map[Slot]string, *Refusal) {
	e, r := imageEnv(image, len(c.Env)+3)
	if r != nil {
		return nil, nil, r
	}
	slots := &slotValues{fixed: known, sent: sent}
	expanding := false
	for i := range sorted {
		n := &sorted[i]
		v, r := resolveVar(n.name, &n.value, given, slots)
		if r != nil {
			return nil, nil, r
		}
		e.set(&v, true)
		expanding = expanding || n.value.Expand != ""
	}
	e.addEngines(c, hostname)
	e.addServices(c, given)
	if expanding {
		if r := e.expandVars(); r != nil {
			return nil, nil, r
		}
	}
	if given != nil {
		if r := compareEnv(RuleContainerEnv, e.vars, given); r != nil {
			return nil, nil, r
		}
	}
	return e, slots.fixed, nil
}

// addEngines adds what every container engine sets.
func (e *environment) addEngines(c *Container, hostname string) {
	if !e.has(c, "HOSTNAME") {
		e.set(&EnvVar{Name: "HOSTNAME", Value: hostname, optional: true}, false)
	}
	if !e.has(c, "PATH") {
		e.set(&EnvVar{Name: "PATH", Value: defaultPath, optional: true}, false)
	}
	if c.Terminal && !e.has(c, "TERM") {
		e.set(&EnvVar{Name: "TERM", Value: defaultTerm, optional: true}, false)
	}
}

// addServices adds the variables of Kubernetes services that the policy opens.
func (e *environment) addServices(c *Container, given map[string]string) {
	if len(c.ServiceEnv) == 0 {
		return
	}
	var names []string
	for name, value := range given {
		if !e.has(c, name) && slices.ContainsFunc(c.ServiceEnv, func(s string) bool { return serviceVariable(s, name, value) }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		e.set(&EnvVar{Name: name, Value: given[name]}, true)
	}
}

// has reports whether image or policy have a variable.
func (e *environment) has(c *Container, name string) bool {
	_, inPolicy := c.Env[name]
	return inPolicy || e.inImage(name) >= 0
}

// expandVars replaces references, when everything else has its value.
func (e *environment) expandVars() *Refusal {
	// None refers to another, so it does not matter which is first.
	for i, v := range e.vars {
		if v.Expand == "" {
			continue
		}
		x, r := e.expandVar(v.Name, v.Expand)
		if r != nil {
			return r
		}
		e.vars[i] = x
	}
	return nil
}

func resolveVar(name string, v *EnvValue, given map[string]string, slots *slotValues) (EnvVar, *Refusal) {
	switch {
	case v.Value != nil:
		return EnvVar{Name: name, Value: *v.Value}, nil
	case v.Sealed != "":
		return EnvVar{Name: name, Sealed: v.Sealed}, nil
	case v.Resource != "":
		// The host has no reason to know of it.
		return EnvVar{Name: name, Resource: v.Resource, optional: true}, nil
	case v.Expand != "":
		return EnvVar{Name: name, Expand: v.Expand}, nil
	case v.Host != "":
		value, r := slots.value(v.Host, name, given)
		return EnvVar{Name: name, Value: value}, r
	}
	value, ok := given[name]
	if !ok {
		return EnvVar{}, refuse(RuleSlotMissing, keyPath("env", name), "a value that matches "+quote(v.Match), nothing, "the policy leaves it to the host")
	}
	if !matches(v.Match, value) {
		return EnvVar{}, refuse(RuleContainerEnv, keyPath("env", name), "a value that matches "+quote(v.Match), quote(value), "")
	}
	return EnvVar{Name: name, Value: value}, nil
}

// compareEnv refuses a variable that differs, one that is missing and one too
// many. One that is made of secrets is not compared: the host's was made without
// them, and is not used.
func compareEnv(rule string, want []EnvVar, given map[string]string) *Refusal {
	found := 0
	for i := range want {
		v := &want[i]
		got, ok := given[v.Name]
		if ok {
			found++
		}
		switch {
		case !ok && !v.optional:
			return refuse(rule, keyPath("env", v.Name), quote(v.literal()), nothing, "a missing variable is refused as an extra one is; leave env out to take the policy's")
		case ok && v.Expand == "" && got != v.literal():
			return refuse(rule, keyPath("env", v.Name), quote(v.literal()), quote(got), "")
		}
	}
	if found == len(given) {
		return nil
	}
	names := make(map[string]bool, len(want))
	for _, v := range want {
		names[v.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !names[name] {
			return refuse(rule, keyPath("env", name), nothing, quote(given[name]), "neither the policy nor the image has this variable")
		}
	}
	return nil
}

// literal is the text that the policy has for a variable.
func (v *EnvVar) literal() string {
	switch {
	case v.Sealed != "":
		return v.Sealed
	case v.Resource != "":
		return v.Resource
	}
	return v.Value
}
