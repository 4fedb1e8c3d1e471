// Package tenant names the owners that share one trustee. Everything the
// trustee keeps belongs to one tenant, and no request reaches across: the
// tenant is part of a request's URL, of the tokens minted for it and of what
// its records are sealed with.
//
// The tenant "default" is served at the root (/kbs/v0, /admin/v1), every other
// one below /tenants/NAME: guests of the ecosystem take such a base URL as it
// is, and their session cookies stay below it.
package tenant

import (
	"fmt"
	"strings"
)

// Name is a tenant: 1 to 63 characters of a-z 0-9 and "-", the first a letter.
type Name string

// Default is the tenant that always exists, served at the root.
const Default Name = "default"

// All stands for every tenant where an administrator's reach is named. It is
// no tenant.
const All Name = "*"

const (
	maxName = 63
	prefix  = "/tenants/"
)

// Parse checks a name.
func Parse(s string) (Name, error) {
	ok := s != "" && len(s) <= maxName && s[0] >= 'a' && s[0] <= 'z' && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	})
	if !ok {
		return "", fmt.Errorf("tenant: expected 1 to %d characters of a-z 0-9 -, the first a letter, got %.80q", maxName, s)
	}
	return Name(s), nil
}

// Prefix is what stands before /kbs/v0 and /admin/v1 in the tenant's URLs:
// nothing for the default tenant.
func (n Name) Prefix() string {
	if n == Default {
		return ""
	}
	return prefix + string(n)
}

// FromPath splits a URL path into its tenant and the rest, which begins with a
// slash. The default tenant has one spelling: /tenants/default is an error.
func FromPath(path string) (Name, string, error) {
	after, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return Default, path, nil
	}
	name, rest, found := strings.Cut(after, "/")
	n, err := Parse(name)
	switch {
	case err != nil:
		return "", "", err
	case n == Default:
		return "", "", fmt.Errorf("tenant: %q is served at the root, without %s", Default, prefix)
	case !found:
		return n, "/", nil
	}
	return n, "/" + rest, nil
}
