package kube

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Limits of the input.
const (
	// MaxFileBytes is the greatest size of one file, MaxBytes that of all.
	MaxFileBytes = 4 << 20
	MaxBytes     = 16 << 20
	maxDocuments = 1024
	// maxDepth is how deep values may nest, maxNodes how many there may be in
	// one file when every alias is followed.
	maxDepth = 48
	maxNodes = 200_000
)

// tree is an object of the input: its YAML nodes by path. Paths are those of
// JSON members from the object's root: spec.containers[0].image.
type tree struct {
	file  string
	root  *yaml.Node
	label string
	// places are the nodes to point at: a member's key, an element itself.
	places map[string]*yaml.Node
	// values are the nodes that hold scalars, aliases followed.
	values map[string]*yaml.Node
	order  []string
}

// at is a problem at the nearest place that the tree knows.
func (t *tree) at(path, remedy, format string, args ...any) Problem {
	n := t.root
	for p := path; p != ""; p = parentPath(p) {
		if m := t.places[p]; m != nil {
			n = m
			break
		}
	}
	return Problem{File: t.file, Line: n.Line, Column: n.Column, Object: t.label, Path: path, Problem: fmt.Sprintf(format, args...), Remedy: remedy}
}

func parentPath(p string) string {
	if strings.HasSuffix(p, "]") {
		if i := strings.LastIndex(p, `["`); i >= 0 && strings.HasSuffix(p, `"]`) {
			return p[:i]
		}
		return p[:max(0, strings.LastIndexByte(p, '['))]
	}
	return p[:max(0, strings.LastIndexByte(p, '.'))]
}

// member is the path of a member of an object or map.
func member(path, key string) string {
	if key == "" || strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
		return path + "[" + strconv.QuoteToASCII(clip(key)) + "]"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// decoder turns YAML nodes into what encoding/json takes, held against Go types
// of the Kubernetes API.
type decoder struct {
	tree     *tree
	problems *problems
	// nodes is what may still be visited.
	nodes *int
	bad   bool
}

func (d *decoder) fail(n *yaml.Node, path, remedy, format string, args ...any) {
	d.bad = true
	d.problems.add(Problem{File: d.tree.file, Line: n.Line, Column: n.Column, Object: d.tree.label, Path: path, Problem: fmt.Sprintf(format, args...), Remedy: remedy})
}

// decode fills *v, a struct of the Kubernetes API, from the tree's root.
func (d *decoder) decode(v any) bool {
	plain := d.value(d.tree.root, reflect.TypeOf(v).Elem(), "", 0)
	if d.bad {
		return false
	}
	data, err := json.Marshal(plain)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		d.fail(d.tree.root, "", "", "%s", err)
	}
	return !d.bad
}

// follow resolves an alias and counts the node.
func (d *decoder) follow(n *yaml.Node, path string, depth int) *yaml.Node {
	at := n
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	*d.nodes--
	switch {
	case n == nil || *d.nodes < 0:
		d.fail(at, path, "write the values out", "more than %d values, aliases followed", maxNodes)
		return nil
	case depth > maxDepth:
		d.fail(at, path, "", "nested more than %d deep", maxDepth)
		return nil
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(at, path, "leave the tag out", "tags such as %s are not taken", clip(n.Tag))
		return nil
	}
	return n
}

func (d *decoder) value(n *yaml.Node, t reflect.Type, path string, depth int) any {
	if n = d.follow(n, path, depth); n == nil {
		return nil
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.ScalarNode {
		d.tree.values[path] = n
		if n.Tag == "!!null" {
			return nil
		}
	}
	if v, ok := d.opaque(n, t, path); ok {
		return v
	}
	switch t.Kind() {
	case reflect.Struct:
		return d.object(n, t, path, depth)
	case reflect.Map:
		return d.mapping(n, t.Elem(), path, depth)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return d.text(n, path)
		}
		return d.sequence(n, t.Elem(), path, depth)
	case reflect.String:
		return d.text(n, path)
	case reflect.Bool:
		return d.boolean(n, path)
	case reflect.Int, reflect.Int32, reflect.Int64:
		return d.integer(n, t, path)
	}
	d.fail(n, path, "", "a value of type %s is not supported here", t)
	return nil
}

// opaque takes the types that have a JSON form of their own.
func (d *decoder) opaque(n *yaml.Node, t reflect.Type, path string) (any, bool) {
	switch t {
	case reflect.TypeFor[resource.Quantity]():
		if n.Kind != yaml.ScalarNode {
			d.wrong(n, path, "a quantity such as 512Mi")
			return nil, true
		}
		if _, err := resource.ParseQuantity(n.Value); err != nil {
			d.fail(n, path, "write a quantity such as 512Mi or 500m", "%q is not a quantity", clip(n.Value))
		}
		return n.Value, true
	case reflect.TypeFor[intstr.IntOrString]():
		if n.Kind == yaml.ScalarNode && n.Tag == "!!int" {
			return d.integer(n, reflect.TypeFor[int32](), path), true
		}
		return d.text(n, path), true
	case reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime]():
		return d.text(n, path), true
	case reflect.TypeFor[metav1.FieldsV1]():
		return map[string]any{}, true // managedFields of a dump: not looked at
	}
	return nil, false
}

func (d *decoder) wrong(n *yaml.Node, path, want string) {
	got := map[yaml.Kind]string{yaml.MappingNode: "a mapping", yaml.SequenceNode: "a sequence"}[n.Kind]
	if n.Kind == yaml.ScalarNode {
		got = "a " + strings.TrimPrefix(n.Tag, "!!")
	}
	d.fail(n, path, "", "expected %s, got %s", want, got)
}

func (d *decoder) text(n *yaml.Node, path string) any {
	if n.Kind != yaml.ScalarNode {
		d.wrong(n, path, "a string")
		return nil
	}
	plain := n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	switch {
	case n.Tag != "!!str" && n.Tag != "!!timestamp", plain && oldBoolean(n.Value):
		d.fail(n, path, "put it in quotation marks", "expected a string, got %s, which YAML reads as something else", clip(n.Value))
		return nil
	}
	return n.Value
}

// oldBoolean: what YAML 1.1, which kubectl speaks, takes for a boolean beside
// true and false.
func oldBoolean(s string) bool {
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off":
		return true
	}
	return false
}

func (d *decoder) boolean(n *yaml.Node, path string) any {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!bool" {
		return strings.EqualFold(n.Value, "true")
	}
	d.fail(n, path, "write true or false", "expected true or false")
	return nil
}

func (d *decoder) integer(n *yaml.Node, t reflect.Type, path string) any {
	var i int64
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || n.Decode(&i) != nil {
		d.wrong(n, path, "an integer")
		return nil
	}
	if t.Kind() == reflect.Int32 && (i > math.MaxInt32 || i < math.MinInt32) {
		d.fail(n, path, "", "%d does not fit", i)
		return nil
	}
	return i
}

func (d *decoder) sequence(n *yaml.Node, elem reflect.Type, path string, depth int) any {
	if n.Kind != yaml.SequenceNode {
		d.wrong(n, path, "a sequence")
		return nil
	}
	list := make([]any, 0, len(n.Content))
	for i, c := range n.Content {
		p := element(path, i)
		d.place(p, c)
		if c.Kind == yaml.ScalarNode && c.Tag == "!!null" {
			d.fail(c, p, "remove the element", "an element without a value")
			continue
		}
		list = append(list, d.value(c, elem, p, depth+1))
	}
	return list
}

func (d *decoder) place(path string, n *yaml.Node) {
	d.tree.places[path] = n
	d.tree.order = append(d.tree.order, path)
}

// members visits the members of a mapping whose keys are fit.
func (d *decoder) members(n *yaml.Node, path string, visit func(key, path string, value *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := d.follow(n.Content[i], path, 0)
		switch {
		case k == nil:
			continue
		case k.Kind == yaml.ScalarNode && k.Tag == "!!merge":
			d.fail(k, path, "write the members out", "merge keys (<<) are not taken: versions of YAML differ in them")
			continue
		case k.Kind != yaml.ScalarNode:
			d.fail(k, path, "", "expected a string as a key")
			continue
		case d.text(k, path) == nil:
			continue
		}
		if line, twice := seen[k.Value]; twice {
			d.fail(k, member(path, k.Value), "remove one of them", "duplicate key: it is in line %d, too", line)
			continue
		}
		seen[k.Value] = k.Line
		p := member(path, k.Value)
		d.place(p, k)
		visit(k.Value, p, n.Content[i+1])
	}
}

func (d *decoder) mapping(n *yaml.Node, elem reflect.Type, path string, depth int) any {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, "a mapping")
		return nil
	}
	m := map[string]any{}
	d.members(n, path, func(key, p string, v *yaml.Node) { m[key] = d.value(v, elem, p, depth+1) })
	return m
}

func (d *decoder) object(n *yaml.Node, t reflect.Type, path string, depth int) any {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, "a mapping")
		return nil
	}
	fields := jsonFields(t)
	m := map[string]any{}
	d.members(n, path, func(key, p string, v *yaml.Node) {
		field, ok := fields[key]
		if ok {
			m[key] = d.value(v, field, p, depth+1)
			return
		}
		remedy := "remove it, or correct its name"
		for name := range fields {
			if strings.EqualFold(name, key) {
				remedy = "did you mean " + name + "?"
			}
		}
		d.fail(d.tree.places[p], p, remedy, "unknown field")
	})
	return m
}

// jsonFields are the members of a struct by their names in JSON.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && (f.Anonymous || strings.Contains(options, "inline")):
			for k, v := range jsonFields(f.Type) {
				fields[k] = v
			}
		case name != "":
			fields[name] = f.Type
		}
	}
	return fields
}
