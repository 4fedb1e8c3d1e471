package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Change is what [Input.Rewrite] writes into a workload.
type Change struct {
	Workload *Workload
	// Annotations of the pod template, which replace those of the same names.
	Annotations map[string]string
	// RuntimeClass replaces runtimeClassName; empty leaves it.
	RuntimeClass string
	// Images are new references of images by those of the manifest.
	Images map[string]string
}

// Rewrite returns the files of the input with changes, with their comments and
// their order; JSON stays JSON. The input must not be used for another Rewrite.
func (in *Input) Rewrite(changes []Change) ([]File, error) {
	for _, c := range changes {
		if err := c.apply(); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Workload, err)
		}
	}
	var files []File
	for _, f := range in.files {
		var data []byte
		var err error
		if strings.HasPrefix(strings.TrimSpace(string(f.Data)), "{") {
			data, err = f.json()
		} else {
			data, err = f.yaml()
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		files = append(files, File{f.Name, data})
	}
	return files, nil
}

func (c *Change) apply() error {
	template := c.Workload.tree.root
	for name := range strings.SplitSeq(c.Workload.templatePath, ".") {
		if name == "" {
			continue
		}
		var err error
		if template, err = ensure(template, name); err != nil {
			return err
		}
	}
	spec, err := ensure(template, "spec")
	if err != nil {
		return err
	}
	if c.RuntimeClass != "" {
		set(spec, "runtimeClassName", c.RuntimeClass)
	}
	for _, list := range []string{"initContainers", "containers", "ephemeralContainers"} {
		containers := child(spec, list)
		if containers == nil {
			continue
		}
		for _, container := range containers.Content {
			if image := child(container, "image"); image != nil {
				if pinned, ok := c.Images[image.Value]; ok {
					image.Value = pinned
				}
			}
		}
	}
	if len(c.Annotations) == 0 {
		return nil
	}
	metadata, err := ensure(template, "metadata")
	if err != nil {
		return err
	}
	annotations, err := ensure(metadata, "annotations")
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.Annotations)) {
		set(annotations, name, c.Annotations[name])
	}
	return nil
}

// ensure is a mapping's member that is a mapping, which is added where there is
// none.
func ensure(n *yaml.Node, key string) (*yaml.Node, error) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value != key {
			continue
		}
		v := n.Content[i+1]
		switch {
		case v.Kind == yaml.AliasNode:
			return nil, fmt.Errorf("line %d: %s is an alias: write it out, since what is added is this workload's alone", v.Line, key)
		case v.Kind == yaml.ScalarNode && v.Tag == "!!null":
			*v = yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", LineComment: v.LineComment}
		case v.Anchor != "":
			return nil, fmt.Errorf("line %d: %s has an anchor: write it out, since what is added is this workload's alone", v.Line, key)
		}
		// {} would stay on one line.
		if len(v.Content) == 0 {
			v.Style &^= yaml.FlowStyle
		}
		return v, nil
	}
	v := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	entry := []*yaml.Node{text(key), v}
	if key == "metadata" {
		// Where people look for it.
		n.Content = append(entry, n.Content...)
	} else {
		n.Content = append(n.Content, entry...)
	}
	return v, nil
}

// set replaces or adds a member that is a string.
func set(n *yaml.Node, key, value string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			old, v := n.Content[i+1], text(value)
			v.HeadComment, v.LineComment, v.FootComment = old.HeadComment, old.LineComment, old.FootComment
			n.Content[i+1] = v
			return
		}
	}
	n.Content = append(n.Content, text(key), text(value))
}

// text is a string, in quotation marks where some reader would take it for
// something else.
func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if oldBoolean(s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

func (f *file) yaml() ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if f.compact {
		e.CompactSeqIndent()
	}
	for _, d := range f.documents {
		if err := e.Encode(d); err != nil {
			return nil, err
		}
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// json writes the documents as JSON, members in their order.
func (f *file) json() ([]byte, error) {
	var out bytes.Buffer
	for _, d := range f.documents {
		var b bytes.Buffer
		if err := writeJSON(&b, d.Content[0]); err != nil {
			return nil, err
		}
		if err := json.Indent(&out, b.Bytes(), "", "  "); err != nil {
			return nil, err
		}
		out.WriteByte('\n')
	}
	return out.Bytes(), nil
}

func writeJSON(b *bytes.Buffer, n *yaml.Node) error {
	scalar := func(v any) error {
		data, err := json.Marshal(v)
		b.Write(data)
		return err
	}
	switch n.Kind {
	case yaml.AliasNode:
		return writeJSON(b, n.Alias)
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			b.WriteByte("{,"[min(i, 1)])
			if err := scalar(n.Content[i].Value); err != nil {
				return err
			}
			b.WriteByte(':')
			if err := writeJSON(b, n.Content[i+1]); err != nil {
				return err
			}
		}
		if len(n.Content) == 0 {
			b.WriteByte('{')
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		for i, c := range n.Content {
			b.WriteByte("[,"[min(i, 1)])
			if err := writeJSON(b, c); err != nil {
				return err
			}
		}
		if len(n.Content) == 0 {
			b.WriteByte('[')
		}
		b.WriteByte(']')
	default:
		var v any = n.Value
		if n.Tag != "!!str" && n.Tag != "!!timestamp" {
			if err := n.Decode(&v); err != nil {
				return err
			}
		}
		return scalar(v)
	}
	return nil
}
