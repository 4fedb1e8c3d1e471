package adminapi

import (
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

// TestClientsTenantNames: the client, which must not know the trustee's
// packages, takes the same names as the server and finds them at the same place.
func TestClientsTenantNames(t *testing.T) {
	t.Parallel()
	if admin.DefaultTenant != string(tenant.Default) {
		t.Errorf("default tenant: %q and %q", admin.DefaultTenant, tenant.Default)
	}
	for _, name := range []string{"a", "acme-2", "Acme", "2a", "a_b", "*", "a/b", "..", strings.Repeat("a", 63), strings.Repeat("a", 64), "a\n"} {
		c, err := admin.New(admin.Options{URL: "https://trustee.example", Tenant: name, Key: testKey("admin")})
		_, want := tenant.Parse(name)
		if (err == nil) != (want == nil) {
			t.Errorf("%q: the client says %v, the server %v", name, err, want)
		}
		if err == nil {
			c.Close()
		}
	}
}
