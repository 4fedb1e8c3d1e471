package kube

import (
	"strings"
)

// normalPath is a path in a PodSpec as Fields has it.
func normalPath(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '[' {
			b.WriteByte(path[i])
			continue
		}
		end := strings.IndexByte(path[i:], ']')
		if strings.HasPrefix(path[i:], `["`) {
			end = strings.Index(path[i:], `"]`) + 1
			b.WriteString("{}")
		} else {
			b.WriteString("[]")
		}
		i += max(end, 0)
	}
	p := b.String()
	for _, same := range []struct{ prefix, from, to string }{
		{"", "initContainers[]", "containers[]"}, {"", "ephemeralContainers[]", "containers[]"},
		{"containers[].", "readinessProbe", "livenessProbe"}, {"containers[].", "startupProbe", "livenessProbe"},
		{"containers[].lifecycle.", "preStop", "postStart"},
	} {
		if rest, ok := strings.CutPrefix(p, same.prefix+same.from); ok && (rest == "" || rest[0] == '.') {
			p = same.prefix + same.to + rest
		}
	}
	return p
}

// decide finds the decision on a field of a PodSpec, or on what it is part of.
func decide(fields map[string]*Field, path string) *Field {
	path = normalPath(path)
	if f, ok := fields[path]; ok {
		return f
	}
	for p := path; p != ""; p = p[:max(0, strings.LastIndexAny(p, ".[{"))] {
		if f, ok := fields[p]; ok && (f.Decision == Refused || f.Decision == Ignored) {
			return f
		}
	}
	return nil
}

func fieldsByPath() map[string]*Field {
	byPath := map[string]*Field{}
	for _, f := range Fields() {
		byPath[f.Path] = &f
	}
	return byPath
}

// refuse reports every field of the workload's PodSpec whose value is not taken.
func (g *generator) refuse() {
	fields := fieldsByPath()
	base := g.w.path("")
	reported := ""
	for _, path := range g.w.tree.order {
		field, ok := strings.CutPrefix(path, base)
		if !ok || reported != "" && strings.HasPrefix(path, reported) {
			continue
		}
		f := decide(fields, field)
		if f == nil {
			continue
		}
		value, isScalar := g.w.tree.values[path]
		whole := normalPath(field) == f.Path && f.Decision == Refused
		if isScalar && (value.Tag == "!!null" || f.Takes(value.Value)) || !isScalar && !whole {
			continue
		}
		reported = path
		got := "this"
		if isScalar && len(f.Only) > 0 {
			got = clip(value.Value)
		}
		g.bad(field, f.Remedy, "%s is refused: %s", got, strings.ReplaceAll(f.How, "`", ""))
	}
}
