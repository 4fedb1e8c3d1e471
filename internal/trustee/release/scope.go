package release

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/kbs"
)

// PolicyID names resource policies in labels. By itself it is the one for
// everything; with a colon and a scope after it, that scope's.
const PolicyID = "resource-policy"

// pluginMark begins the scope of a plugin's resources. No repository's name
// can begin with it.
const pluginMark = "+"

// maxDepth bounds the segments of a plugin's path.
const maxDepth = 16

// ParseScope checks what a resource policy or a binding is bound to: "" is
// everything; "repository", "repository/type" and "repository/type/tag" are
// stored resources; "+plugin", "+plugin/segment", … are what a plugin serves,
// in at most 17 segments. Segments are those of [resource.Parse].
func ParseScope(s string) (string, error) {
	rest, ok := strings.CutPrefix(s, pluginMark)
	if !ok {
		if s == "" {
			return "", nil
		}
		return resource.ParsePrefix(s)
	}
	parts := strings.Split(rest, "/")
	if len(parts) > maxDepth+1 {
		return "", fmt.Errorf("scope %.80q: expected at most %d segments, got %d", s, maxDepth+1, len(parts))
	}
	for _, p := range parts {
		if err := checkSegment(p); err != nil {
			return "", fmt.Errorf("scope %.80q: %w", s, err)
		}
	}
	return s, nil
}

// checkSegment: one segment alone is a valid prefix of a resource path.
func checkSegment(s string) error {
	if strings.Contains(s, "/") {
		return fmt.Errorf("segment %.80q holds a slash", s)
	}
	_, err := resource.ParsePrefix(s)
	return err
}

// Scopes lists the scopes that cover a path, the most specific first and
// without "". What bindings cover a path, and which policy decides on it, is
// looked up by them. The path of [kbs.PluginResource] has three segments, a
// plugin's at most 16 and perhaps none.
func Scopes(plugin string, path []string) ([]string, error) {
	first, rest := plugin, path
	if plugin == kbs.PluginResource {
		if len(path) != 3 {
			return nil, fmt.Errorf("resource path: expected three segments repository/type/tag, got %d", len(path))
		}
		first, rest = path[0], path[1:]
	}
	if err := checkSegment(first); err != nil {
		return nil, err
	}
	if len(rest) > maxDepth {
		return nil, fmt.Errorf("path of plugin %s: expected at most %d segments, got %d", plugin, maxDepth, len(rest))
	}
	scope := first
	if plugin != kbs.PluginResource {
		scope = pluginMark + first
	}
	out := []string{scope}
	for _, s := range rest {
		if err := checkSegment(s); err != nil {
			return nil, err
		}
		scope += "/" + s
		out = append(out, scope)
	}
	slices.Reverse(out)
	return out, nil
}

// Label names a version of a policy in records and denials:
// "resource-policy@3" for the one that covers everything,
// "resource-policy:demo/key@3" for a scope's. Version 0 is the built-in policy.
func Label(scope string, version int64) string {
	if version == 0 {
		return PolicyID + builtIn
	}
	if scope != "" {
		scope = ":" + scope
	}
	return PolicyID + scope + "@" + strconv.FormatInt(version, 10)
}

const builtIn = " (built in)"

// ParseLabel reads a [Label]. Version 0 is the built-in policy.
func ParseLabel(label string) (scope string, version int64, err error) {
	bad := fmt.Errorf("policy label: expected %q or %q or %q, got %.200q", Label("", 0), Label("", 3), Label("demo/key", 3), label)
	if label == Label("", 0) {
		return "", 0, nil
	}
	rest, ok := strings.CutPrefix(label, PolicyID)
	name, number, found := strings.Cut(rest, "@")
	if !ok || !found {
		return "", 0, bad
	}
	if name != "" {
		if scope, ok = strings.CutPrefix(name, ":"); !ok || scope == "" {
			return "", 0, bad
		}
		if _, err := ParseScope(scope); err != nil {
			return "", 0, err
		}
	}
	if version, err = strconv.ParseInt(number, 10, 64); err != nil || version < 1 || Label(scope, version) != label {
		return "", 0, bad
	}
	return scope, version, nil
}
