// Package resource names what the trustee keeps: repository/type/tag paths,
// and the prefixes of them that bindings and, later, policies are bound to.
package resource

import (
	"fmt"
	"strings"
)

// MaxSegment is the longest path segment, in bytes.
const MaxSegment = 128

// Path names one resource, "repository/type/tag". The zero value is invalid;
// get one from [Parse].
type Path struct{ Repository, Type, Tag string }

// String is the path as it stands in a kbs:/// URI, without a leading slash.
func (p Path) String() string { return p.Repository + "/" + p.Type + "/" + p.Tag }

// Segments are the three parts in order: the array a resource policy sees as
// data["resource-path"].
func (p Path) Segments() []string { return []string{p.Repository, p.Type, p.Tag} }

// Prefixes are the names a binding may use to cover p, most specific first:
// "repository/type/tag", "repository/type", "repository".
func (p Path) Prefixes() []string {
	return []string{p.String(), p.Repository + "/" + p.Type, p.Repository}
}

// Parse reads "repository/type/tag". Every segment has 1 to [MaxSegment]
// characters of [A-Za-z0-9_.-] and does not begin with a dot (KBS resource
// path rule), so that no segment can be "." or "..".
func Parse(s string) (Path, error) {
	parts, err := split(s)
	if err != nil {
		return Path{}, err
	}
	if len(parts) != 3 {
		return Path{}, fmt.Errorf("resource path %q: expected three segments repository/type/tag, got %d", clip(s), len(parts))
	}
	return Path{Repository: parts[0], Type: parts[1], Tag: parts[2]}, nil
}

// ParsePrefix reads one to three segments: "repository", "repository/type"
// or a whole path.
func ParsePrefix(s string) (string, error) {
	parts, err := split(s)
	if err != nil {
		return "", err
	}
	if len(parts) > 3 {
		return "", fmt.Errorf("resource %q: expected at most three segments repository/type/tag, got %d", clip(s), len(parts))
	}
	return s, nil
}

func split(s string) ([]string, error) {
	if len(s) > 3*MaxSegment+2 {
		return nil, fmt.Errorf("resource path: expected at most %d bytes, got %d", 3*MaxSegment+2, len(s))
	}
	parts := strings.Split(s, "/")
	for i, p := range parts {
		if err := checkSegment(p); err != nil {
			return nil, fmt.Errorf("resource path %q: segment %d: %w", clip(s), i+1, err)
		}
	}
	return parts, nil
}

func checkSegment(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("is empty")
	case len(s) > MaxSegment:
		return fmt.Errorf("expected at most %d bytes, got %d", MaxSegment, len(s))
	case s[0] == '.':
		return fmt.Errorf("begins with a dot")
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-', c == '.':
		default:
			return fmt.Errorf("byte %q is none of the characters A-Z a-z 0-9 . _ -", c)
		}
	}
	return nil
}

// clip keeps messages about hostile paths short.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
