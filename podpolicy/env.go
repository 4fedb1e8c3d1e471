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

// parseEnv reads a proposal's environment.
func parseEnv(path string, list []string) (map[string]string, *Refusal) {
	if len(list) > maxEnv {
		return nil, tooMany(RuleProposalForm, path, maxEnv, len(list))
	}
	env := make(map[string]string, len(list))
	total := 0
	for i, e := range list {
		name, value, ok := strings.Cut(e, "=")
		at := indexPath(path, i)
		if total += len(e); total > maxEnvBytes {
			return nil, refuse(RuleProposalForm, path, fmt.Sprintf("at most %d bytes", maxEnvBytes), "more", "")
		}
		if !ok || !isEnvName(name) || strings.ContainsRune(value, 0) {
			return nil, refuse(RuleProposalForm, at, "NAME=VALUE without NUL", quote(e), "")
		}
		if _, twice := env[name]; twice {
			return nil, refuse(RuleProposalForm, at, "each name once", quote(name), "")
		}
		env[name] = value
	}
	return env, nil
}

// environment is an ordered set of variables in the making.
type environment struct {
	vars  []EnvVar
	index map[string]int
}

func (e *environment) has(name string) bool { _, ok := e.index[name]; return ok }

func (e *environment) set(v EnvVar) {
	if i, ok := e.index[v.Name]; ok {
		e.vars[i] = v
		return
	}
	e.index[v.Name] = len(e.vars)
	e.vars = append(e.vars, v)
}

// imageEnv reads the environment of an image; the last of equal names counts.
func imageEnv(list []string) (*environment, *Refusal) {
	e := &environment{index: map[string]int{}}
	if len(list) > maxEnv {
		return nil, tooMany(RuleImageConfig, "image.env", maxEnv, len(list))
	}
	total := 0
	for i, entry := range list {
		name, value, ok := strings.Cut(entry, "=")
		total += len(entry)
		if !ok || !isEnvName(name) || strings.ContainsRune(value, 0) || total > maxEnvBytes {
			return nil, refuse(RuleImageConfig, indexPath("image.env", i), fmt.Sprintf("NAME=VALUE, at most %d bytes in all", maxEnvBytes), quote(name), "build the image again without this entry")
		}
		e.set(EnvVar{Name: name, Value: value})
	}
	return e, nil
}

// slotValues fills slots, and holds each to one value in the life of the pod.
type slotValues struct {
	fixed map[Slot]string
	sent  map[string]string
}

// take notes a value that the host gave at path.
func (v *slotValues) take(s Slot, path, value string) *Refusal {
	if r := checkSlot(s, path, value); r != nil {
		return r
	}
	if old, ok := v.fixed[s]; ok && old != value {
		return refuse(RuleSlotChanged, path, quote(old), quote(value), "a slot has one value in the life of a pod")
	}
	v.fixed[s] = value
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
	return "", refuse(RuleSlotMissing, keyPath("slots", string(s)), s.spec().form, nothing, "variable "+quote(name)+" needs it")
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
// policy's by name, then services' by name. A proposal's environment, when
// there is one, must agree with it in both directions.
func resolveEnv(c *Container, image []string, q ContainerProposal, known map[Slot]string) ([]EnvVar, map[Slot]string, *Refusal) {
	e, r := imageEnv(image)
	if r != nil {
		return nil, nil, r
	}
	var given map[string]string
	if q.Env != nil {
		if given, r = parseEnv("env", *q.Env); r != nil {
			return nil, nil, r
		}
	}
	slots := &slotValues{fixed: maps.Clone(known), sent: q.Slots}
	for _, name := range slices.Sorted(maps.Keys(c.Env)) {
		v, r := resolveVar(name, c.Env[name], given, slots)
		if r != nil {
			return nil, nil, r
		}
		e.set(v)
	}
	if !e.has("PATH") {
		e.set(EnvVar{Name: "PATH", Value: defaultPath, optional: true})
	}
	if c.Terminal && !e.has("TERM") {
		e.set(EnvVar{Name: "TERM", Value: defaultTerm, optional: true})
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !e.has(name) && slices.ContainsFunc(c.ServiceEnv, func(s string) bool { return serviceVariable(s, name, given[name]) }) {
			e.set(EnvVar{Name: name, Value: given[name]})
		}
	}
	if q.Env != nil {
		if r := compareEnv(RuleContainerEnv, e.vars, given); r != nil {
			return nil, nil, r
		}
	}
	return e.vars, slots.fixed, nil
}

func resolveVar(name string, v EnvValue, given map[string]string, slots *slotValues) (EnvVar, *Refusal) {
	switch {
	case v.Value != nil:
		return EnvVar{Name: name, Value: *v.Value}, nil
	case v.Sealed != "":
		return EnvVar{Name: name, Sealed: v.Sealed}, nil
	case v.Resource != "":
		// The host has no reason to know of it.
		return EnvVar{Name: name, Resource: v.Resource, optional: true}, nil
	case v.Host != "":
		value, r := slots.value(v.Host, name, given)
		return EnvVar{Name: name, Value: value}, r
	}
	path := keyPath("env", name)
	value, ok := given[name]
	if !ok {
		return EnvVar{}, refuse(RuleSlotMissing, path, "a value that matches "+quote(v.Match), nothing, "the policy leaves it to the host")
	}
	if !matches(v.Match, value) {
		return EnvVar{}, refuse(RuleContainerEnv, path, "a value that matches "+quote(v.Match), quote(value), "")
	}
	return EnvVar{Name: name, Value: value}, nil
}

// compareEnv refuses a variable that differs, one that is missing and one too
// many.
func compareEnv(rule string, want []EnvVar, given map[string]string) *Refusal {
	names := map[string]bool{}
	for _, v := range want {
		names[v.Name] = true
		got, ok := given[v.Name]
		literal := v.Value + v.Sealed + v.Resource
		switch {
		case !ok && !v.optional:
			return refuse(rule, keyPath("env", v.Name), quote(literal), nothing, "a missing variable is refused as an extra one is; leave env out to take the policy's")
		case ok && got != literal:
			return refuse(rule, keyPath("env", v.Name), quote(literal), quote(got), "")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !names[name] {
			return refuse(rule, keyPath("env", name), nothing, quote(given[name]), "neither the policy nor the image has this variable")
		}
	}
	return nil
}
