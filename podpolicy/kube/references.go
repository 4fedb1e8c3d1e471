package kube

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// configMap finds one in the input. It is nil, and that is a problem unless it
// is optional, when there is none.
func (g *generator) configMap(field, name string, optional *bool) *named[corev1.ConfigMap] {
	m := find(g.in.objects.configMaps, g.namespace(), name)
	if m == nil {
		g.missing(field, "ConfigMap", name, optional)
	}
	return m
}

// secretValues is a Secret with its contents.
type secretValues struct {
	*named[corev1.Secret]
	values map[string]string
}

func (g *generator) secret(field, name string, optional *bool) *secretValues {
	s := find(g.in.objects.secrets, g.namespace(), name)
	if s == nil {
		g.missing(field, "Secret", name, optional)
		return nil
	}
	values := map[string]string{}
	for k, v := range s.object.Data {
		values[k] = string(v)
	}
	maps.Copy(values, s.object.StringData)
	return &secretValues{s, values}
}

func (g *generator) missing(field, kind, name string, optional *bool) {
	if optional != nil && *optional {
		g.note(field, "add it if it exists", "%s %s is not in the input and taken for absent", kind, clip(name))
		return
	}
	remedy := "add its manifest to the files"
	if kind == "Secret" {
		remedy += ", or take the values from the trustee (" + AnnotationEnv + "CONTAINER, " + AnnotationFiles + "VOLUME)"
	}
	g.bad(field, remedy, "%s %s is not in the input", kind, clip(name))
}

// inPolicy is what becomes of a variable.
const inPolicy = "the policy makes it public"

// plainSecret warns of keys of a Secret that are not sealed, and says what
// becomes of them.
func (g *generator) plainSecret(s *secretValues, field string, keys []string, becomes string) {
	plain := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return strings.HasPrefix(s.values[k], "sealed.") })
	if len(plain) == 0 {
		return
	}
	g.note(field, "seal it with `coffer secret seal`, or take it from the trustee", "%s of Secret %s is not sealed: %s", clip(strings.Join(plain, ", ")), clip(s.name), becomes)
}

// resourceValue is a number as the kubelet computes it for the downward API
// (ExtractContainerResourceValue): rounded up to the divisor.
func (g *generator) resourceValue(field string, r *corev1.ResourceFieldSelector, c *corev1.Container) (string, bool) {
	if r.ContainerName != "" && (c == nil || r.ContainerName != c.Name) {
		c = g.findContainer(r.ContainerName)
	}
	if c == nil {
		g.bad(field, "write containerName", "the pod has no container %s", clip(r.ContainerName))
		return "", false
	}
	list, name, ok := strings.Cut(r.Resource, ".")
	if !ok || !slices.Contains([]string{"limits", "requests"}, list) || !slices.Contains([]string{"cpu", "memory", "ephemeral-storage"}, name) {
		g.bad(field+".resource", "", "expected limits or requests of cpu, memory or ephemeral-storage, got %s", clip(r.Resource))
		return "", false
	}
	quantity, ok := c.Resources.Limits[corev1.ResourceName(name)]
	if list == "requests" {
		// The API server takes limits for requests that are not there.
		if q, there := c.Resources.Requests[corev1.ResourceName(name)]; there {
			quantity, ok = q, true
		} else if !ok {
			quantity, ok = resource.Quantity{}, true
		}
	}
	if !ok {
		g.bad(field+".resource", "write resources."+r.Resource, "container %s has no such limit, and the value would be the node's", clip(c.Name))
		return "", false
	}
	divisor := r.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	n, d := quantity.Value(), divisor.Value()
	if name == "cpu" {
		n, d = quantity.MilliValue(), divisor.MilliValue()
	}
	if n < 0 || d <= 0 {
		g.bad(field, "", "expected positive quantities, got %s and the divisor %s", quantity.String(), divisor.String())
		return "", false
	}
	value := n / d
	if n%d != 0 {
		value++
	}
	return strconv.FormatInt(value, 10), true
}

func (g *generator) findContainer(name string) *corev1.Container {
	for _, list := range [][]corev1.Container{g.spec.Containers, g.spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// claim finds the claim of a volume in the input, or among a StatefulSet's
// templates; nil without one.
func (g *generator) claim(name string) *corev1.PersistentVolumeClaim {
	if c := find(g.in.objects.claims, g.namespace(), name); c != nil {
		return c.object
	}
	return nil
}

func octal(mode int32) string { return fmt.Sprintf("%04o", mode) }
