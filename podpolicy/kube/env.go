package kube

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coffer-project/coffer/podpolicy"
)

// variable is one of a container's environment in the making.
type variable struct {
	// parts of its value, where it is literal or refers to others.
	parts []part
	// direct is a value of another kind; nil for one of parts.
	direct *podpolicy.EnvValue
	// field is where it comes from.
	field string
	// definition counts how often the name was defined.
	definition int
}

// environment follows the kubelet (makeEnvironmentVariables): first envFrom in
// its order, then env in its order, where a value may refer to what is before
// it, and last the Services' variables, which replace nothing.
type environment struct {
	g     *generator
	c     *corev1.Container
	field string
	vars  map[string]*variable
	// referred are the definitions that values refer to.
	referred map[string]int
}

func (g *generator) environment(c *corev1.Container, field string) *environment {
	e := &environment{g: g, c: c, field: field, vars: map[string]*variable{}, referred: map[string]int{}}
	for i := range c.EnvFrom {
		e.from(element(field+".envFrom", i), &c.EnvFrom[i])
	}
	for i := range c.Env {
		e.variable(element(field+".env", i), &c.Env[i])
	}
	e.secrets()
	for name, definition := range e.referred {
		if v := e.vars[name]; v != nil && v.definition != definition {
			g.bad(v.field, "give one of the two another name", "variable %s is defined again after $(%s) was used, and only the guest knows its value", clip(name), clip(name))
		}
	}
	if g.w.indexed && e.vars[completionIndex] == nil {
		e.set(completionIndex, &variable{direct: &podpolicy.EnvValue{Match: "*"}, field: field})
	}
	return e
}

// completionIndex is the variable that the controller of indexed Jobs adds at
// the end, with the pod's number.
const completionIndex = "JOB_COMPLETION_INDEX"

func (e *environment) set(name string, v *variable) {
	if old := e.vars[name]; old != nil {
		v.definition = old.definition + 1
	}
	e.vars[name] = v
}

// from takes all of a ConfigMap or Secret.
func (e *environment) from(field string, f *corev1.EnvFromSource) {
	var values map[string]string
	switch {
	case f.ConfigMapRef != nil:
		m := e.g.configMap(field+".configMapRef", f.ConfigMapRef.Name, f.ConfigMapRef.Optional)
		if m == nil {
			return
		}
		values = m.object.Data
	case f.SecretRef != nil:
		s := e.g.secret(field+".secretRef", f.SecretRef.Name, f.SecretRef.Optional)
		if s == nil {
			return
		}
		values = s.values
		e.g.plainSecret(s, field+".secretRef", slices.Sorted(maps.Keys(values)), inPolicy)
	default:
		e.g.bad(field, "", "expected configMapRef or secretRef")
		return
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		name := f.Prefix + key
		if !portableName(name) {
			e.g.bad(field, "rename the key, or take the others one by one in env", "key %s makes no name of a variable in every version of Kubernetes: letters, digits, -, _ and . that do not begin with a digit", clip(name))
			continue
		}
		e.set(name, e.value(field, values[key]))
	}
}

// portableName: what every version of Kubernetes takes for a variable's name;
// older ones skip others silently (apimachinery, validation.IsEnvVarName).
func portableName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._"
	return s != "" && s != "." && !strings.HasPrefix(s, "..") && strings.Trim(s, letters+"0123456789") == "" && strings.Contains(letters, s[:1])
}

// value of a variable that is not expanded.
func (e *environment) value(field, s string) *variable {
	if strings.HasPrefix(s, "sealed.") {
		return &variable{direct: &podpolicy.EnvValue{Sealed: s}, field: field}
	}
	return &variable{parts: join(nil, part{text: s}), field: field}
}

func (e *environment) variable(field string, v *corev1.EnvVar) {
	switch {
	case v.Value != "" && v.ValueFrom != nil:
		e.g.bad(field, "remove one of them", "value and valueFrom")
	case v.Name == "" || strings.ContainsAny(v.Name, "= "):
		e.g.bad(field, "", "a variable needs a name without = and blanks")
	case v.ValueFrom != nil:
		if value := e.valueFrom(field+".valueFrom", v.ValueFrom); value != nil {
			value.field = field
			e.set(v.Name, value)
		}
	default:
		parts := expand(v.Value, e.lookup)
		value := &variable{parts: parts, field: field}
		if s, ok := literal(parts); ok {
			value = e.value(field, s)
		}
		e.set(v.Name, value)
	}
}

// lookup is the value that $(NAME) has here: a variable's before this place, or
// a Service's.
func (e *environment) lookup(name string) ([]part, bool) {
	v := e.vars[name]
	switch {
	case v == nil && slices.ContainsFunc(e.g.services, func(s string) bool { return serviceVariable(s, name) }):
		return []part{{ref: name}}, true
	case v == nil:
		return nil, false
	case v.direct != nil:
		e.referred[name] = v.definition
		return []part{{ref: name}}, true
	}
	return v.parts, true
}

// serviceVariable reports whether Kubernetes gives a Service's pods a variable of
// this name.
func serviceVariable(service, name string) bool {
	rest, ok := strings.CutPrefix(name, strings.ToUpper(strings.ReplaceAll(service, "-", "_")))
	return ok && (rest == "_SERVICE_HOST" || rest == "_SERVICE_PORT" || rest == "_PORT" || strings.HasPrefix(rest, "_SERVICE_PORT_") || strings.HasPrefix(rest, "_PORT_"))
}

func (e *environment) valueFrom(field string, s *corev1.EnvVarSource) *variable {
	switch {
	case s.FieldRef != nil:
		return e.fieldRef(field+".fieldRef.fieldPath", s.FieldRef.FieldPath)
	case s.ResourceFieldRef != nil:
		text, ok := e.g.resourceValue(field+".resourceFieldRef", s.ResourceFieldRef, e.c)
		if !ok {
			return nil
		}
		return &variable{parts: join(nil, part{text: text})}
	case s.ConfigMapKeyRef != nil:
		r := s.ConfigMapKeyRef
		m := e.g.configMap(field+".configMapKeyRef", r.Name, r.Optional)
		if m == nil {
			return nil
		}
		text, ok := m.object.Data[r.Key]
		return e.key(field+".configMapKeyRef.key", text, ok, r.Key, r.Optional)
	case s.SecretKeyRef != nil:
		r := s.SecretKeyRef
		secret := e.g.secret(field+".secretKeyRef", r.Name, r.Optional)
		if secret == nil {
			return nil
		}
		text, ok := secret.values[r.Key]
		if ok {
			e.g.plainSecret(secret, field+".secretKeyRef", []string{r.Key}, inPolicy)
		}
		return e.key(field+".secretKeyRef.key", text, ok, r.Key, r.Optional)
	case s.FileKeyRef != nil: // refused
		return nil
	}
	e.g.bad(field, "", "expected one of fieldRef, resourceFieldRef, configMapKeyRef and secretKeyRef")
	return nil
}

// key is the value of a key that may be absent.
func (e *environment) key(field, text string, ok bool, key string, optional *bool) *variable {
	if !ok {
		if optional == nil || !*optional {
			e.g.bad(field, "", "there is no key %s", clip(key))
		}
		return nil
	}
	return e.value(field, text)
}

// fieldRef is a field of the pod itself (downward API).
func (e *environment) fieldRef(field, path string) *variable {
	slots := map[string]podpolicy.Slot{
		"metadata.name": podpolicy.SlotPodName, "metadata.namespace": podpolicy.SlotPodNamespace, "metadata.uid": podpolicy.SlotPodUID,
		"spec.nodeName": podpolicy.SlotNodeName, "status.hostIP": podpolicy.SlotHostIP, "status.hostIPs": podpolicy.SlotHostIPs,
		"status.podIP": podpolicy.SlotIP, "status.podIPs": podpolicy.SlotIPs,
	}
	if slot, ok := slots[path]; ok {
		return &variable{direct: &podpolicy.EnvValue{Host: slot}}
	}
	text, generated, ok := e.g.metadata(path)
	switch {
	case !ok:
		e.g.bad(field, "see the Kubernetes documentation, \"Downward API\"", "%s is no field that the environment can have", clip(path))
		return nil
	case generated:
		return &variable{direct: &podpolicy.EnvValue{Match: "*"}}
	}
	return &variable{parts: join(nil, part{text: text})}
}

// metadata is a label, annotation or service account of the pod; generated are
// those that a controller gives each pod.
func (g *generator) metadata(path string) (text string, generated, ok bool) {
	if path == "spec.serviceAccountName" {
		return g.serviceAccount(), false, true
	}
	for _, kind := range []struct {
		prefix string
		values map[string]string
	}{{"metadata.labels['", g.w.template.Labels}, {"metadata.annotations['", g.w.template.Annotations}} {
		key, found := strings.CutPrefix(path, kind.prefix)
		key, closed := strings.CutSuffix(key, "']")
		if !found || !closed {
			continue
		}
		if text, there := kind.values[key]; there {
			return text, false, true
		}
		return "", g.w.generated && controllerKey(key), true
	}
	return "", false, false
}

// controllerKey: labels and annotations that Kubernetes' own controllers give
// to pods.
func controllerKey(key string) bool {
	switch key {
	case "pod-template-hash", "controller-revision-hash", "pod-template-generation", "controller-uid", "job-name",
		"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index":
		return true
	}
	return strings.HasPrefix(key, "batch.kubernetes.io/")
}

func (g *generator) serviceAccount() string {
	for _, name := range []string{g.spec.ServiceAccountName, g.spec.DeprecatedServiceAccount} {
		if name != "" {
			return name
		}
	}
	return "default"
}

// secrets adds the variables that annotations and options take from the trustee.
func (e *environment) secrets() {
	add := func(values map[string]string, bad func(name, remedy, format string, args ...any)) {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			uri := values[name]
			if v := e.vars[name]; v != nil {
				// The host will name what the manifest says: it has to say the same.
				if text, ok := literal(v.parts); !ok || v.direct != nil || text != uri {
					bad(name, "remove it from env, or write the URI as its value", "variable %s has a value of its own in the manifest", clip(name))
				}
			}
			e.set(name, &variable{direct: &podpolicy.EnvValue{Resource: uri}, field: e.field + ".env"})
		}
	}
	add(e.g.marks.env[e.c.Name], func(_, remedy, format string, args ...any) {
		e.g.badMeta(AnnotationEnv+e.c.Name, remedy, format, args...)
	})
	add(e.g.o.SecretEnv[e.c.Name], func(_, remedy, format string, args ...any) { e.g.bad(e.field+".env", remedy, format, args...) })
}

// policy is the environment in the policy's terms.
func (e *environment) policy() map[string]podpolicy.EnvValue {
	env := map[string]podpolicy.EnvValue{}
	for name, v := range e.vars {
		text, ok := literal(v.parts)
		switch {
		case v.direct != nil:
			env[name] = *v.direct
		case ok:
			env[name] = podpolicy.Literal(text)
		default:
			env[name] = podpolicy.EnvValue{Expand: written(v.parts)}
		}
	}
	return env
}
