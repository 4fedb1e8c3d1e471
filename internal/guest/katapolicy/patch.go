//go:build kata_policy

package katapolicy

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

const (
	maxOps   = 256
	maxDepth = 16
)

// patch returns the state after a JSON patch (RFC 6902), all of it or none. What
// it was given it leaves alone. Only what is below /pstate may change.
func patch(state map[string]any, ops []operation) (map[string]any, error) {
	if len(ops) > maxOps {
		return nil, fmt.Errorf("ops: expected at most %d operations, got %d", maxOps, len(ops))
	}
	var doc any
	if err := copyJSON(state, &doc); err != nil {
		return nil, err
	}
	for i, op := range ops {
		var err error
		if doc, err = op.apply(doc); err != nil {
			return nil, fmt.Errorf("ops[%d]: %s %q: %w", i, op.Op, op.Path, err)
		}
	}
	next, ok := doc.(map[string]any)
	if !ok {
		return nil, errors.New("ops: the state is no object any more")
	}
	data, err := json.Marshal(next)
	if err != nil {
		return nil, err
	}
	if len(data) > maxState {
		return nil, fmt.Errorf("ops: the state would be %d bytes, the limit is %d", len(data), maxState)
	}
	return next, nil
}

func copyJSON(from, to any) error {
	data, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, to)
}

func (op operation) apply(doc any) (any, error) {
	path, err := pointer(op.Path)
	if err != nil {
		return nil, err
	}
	switch op.Op {
	case "add", "replace", "remove":
		return edit(doc, path, op.Op, op.Value)
	case "test":
		got, err := get(doc, path)
		if err == nil && !reflect.DeepEqual(got, plain(op.Value)) {
			err = errors.New("another value")
		}
		return doc, err
	case "copy", "move":
		from, err := pointer(op.From)
		if err != nil {
			return nil, err
		}
		value, err := get(doc, from)
		if err != nil {
			return nil, err
		}
		if op.Op == "move" {
			if doc, err = edit(doc, from, "remove", nil); err != nil {
				return nil, err
			}
		}
		return edit(doc, path, "add", value)
	}
	return nil, errors.New("no operation of a JSON patch")
}

// plain is a value as copyJSON makes it, which shares nothing with v.
func plain(v any) any {
	var c any
	if copyJSON(v, &c) != nil {
		return nil
	}
	return c
}

// pointer reads a JSON pointer (RFC 6901) into what the policy may keep.
func pointer(s string) ([]string, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || parts[0] != "" || parts[1] != "pstate" || len(parts) > maxDepth {
		return nil, fmt.Errorf("expected a path below /pstate, at most %d deep", maxDepth)
	}
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(strings.ReplaceAll(p, "~1", "/"), "~0", "~")
	}
	return parts[1:], nil
}

var errNoSuch = errors.New("there is nothing")

func get(doc any, path []string) (any, error) {
	for _, key := range path {
		switch v := doc.(type) {
		case map[string]any:
			next, ok := v[key]
			if !ok {
				return nil, errNoSuch
			}
			doc = next
		case []any:
			i, err := index(key, len(v)-1)
			if err != nil {
				return nil, err
			}
			doc = v[i]
		default:
			return nil, errNoSuch
		}
	}
	return doc, nil
}

// edit adds, replaces or removes what is at path.
func edit(doc any, path []string, op string, value any) (any, error) {
	if len(path) == 0 {
		if op == "remove" {
			return nil, errors.New("the state itself cannot be removed")
		}
		return plain(value), nil
	}
	key, last := path[0], len(path) == 1
	switch v := doc.(type) {
	case map[string]any:
		old, ok := v[key]
		switch {
		case !ok && (!last || op != "add"):
			return nil, errNoSuch
		case last && op == "remove" && key != "pstate":
			delete(v, key)
			return v, nil
		}
		next, err := edit(old, path[1:], op, value)
		if err != nil {
			return nil, err
		}
		v[key] = next
		return v, nil
	case []any:
		return editArray(v, path, op, value)
	}
	return nil, errNoSuch
}

func editArray(v []any, path []string, op string, value any) (any, error) {
	key, last := path[0], len(path) == 1
	if last && op == "add" {
		i := len(v)
		if key != "-" {
			var err error
			if i, err = index(key, len(v)); err != nil {
				return nil, err
			}
		}
		return append(v[:i:i], append([]any{plain(value)}, v[i:]...)...), nil
	}
	i, err := index(key, len(v)-1)
	if err != nil {
		return nil, err
	}
	if last && op == "remove" {
		return append(v[:i:i], v[i+1:]...), nil
	}
	if v[i], err = edit(v[i], path[1:], op, value); err != nil {
		return nil, err
	}
	return v, nil
}

// index reads an array index of at most limit, without signs or leading zeros.
func index(s string, limit int) (int, error) {
	i, err := strconv.Atoi(s)
	if err != nil || i < 0 || i > limit || strconv.Itoa(i) != s {
		return 0, errNoSuch
	}
	return i, nil
}
