package admin

import (
	"fmt"
	"strings"
)

// DefaultTenant is the tenant that is served at the root of a trustee's URL;
// the others are below /tenants/NAME.
const DefaultTenant = "default"

// checkTenant refuses what can be no tenant's name: it becomes part of a URL.
func checkTenant(name string) error {
	const longest = 63
	ok := name != "" && len(name) <= longest && name[0] >= 'a' && name[0] <= 'z' && !strings.ContainsFunc(name, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	})
	if !ok {
		return fmt.Errorf("tenant: expected 1 to %d characters of a-z 0-9 -, the first a letter, got %.80q", longest, name)
	}
	return nil
}

// tenantPrefix is what stands before the paths of a tenant's interface.
func tenantPrefix(name string) (string, error) {
	if name == "" || name == DefaultTenant {
		return "", nil
	}
	return "/tenants/" + name, checkTenant(name)
}
