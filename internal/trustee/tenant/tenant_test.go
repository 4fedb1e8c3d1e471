package tenant

import (
	"strings"
	"testing"
)

func TestFromPath(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]struct {
		name Name
		rest string
	}{
		"/kbs/v0/auth":              {Default, "/kbs/v0/auth"},
		"/":                         {Default, "/"},
		"/tenants/acme/kbs/v0/auth": {"acme", "/kbs/v0/auth"},
		"/tenants/a-1/":             {"a-1", "/"},
		"/tenants/acme":             {"acme", "/"},
		"/tenantsx/acme":            {Default, "/tenantsx/acme"},
		"/tenants/default/kbs/v0/x": {},
		"/tenants//kbs/v0/x":        {},
		"/tenants/ACME/kbs/v0/x":    {},
		"/tenants/../kbs/v0/x":      {},
		"/tenants/*/kbs/v0/x":       {},
		"/tenants/1a/kbs/v0/x":      {},
		"/tenants/a\x00b/kbs/v0/x":  {},
		"/tenants/" + strings.Repeat("a", 64) + "/kbs": {},
	} {
		name, rest, err := FromPath(path)
		if (err != nil) != (want.name == "") || name != want.name || rest != want.rest {
			t.Errorf("%q: got %q, %q, %v", path, name, rest, err)
		}
		if err == nil && strings.HasPrefix(path, "/tenants/") && !strings.HasPrefix(path, name.Prefix()) {
			t.Errorf("%q: prefix %q", path, name.Prefix())
		}
	}
	if Default.Prefix() != "" {
		t.Errorf("default: prefix %q", Default.Prefix())
	}
}
