package adminapi

import (
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

// Permission is what a route asks of an administrator. Each is given by roles.
type Permission string

// The permissions. Contents of resources can be read by nobody: only guests
// that have proved what they are get them.
const (
	ResourceWrite  Permission = "resource.write"
	ResourceList   Permission = "resource.list"
	PolicyWrite    Permission = "policy.write"
	PolicyRead     Permission = "policy.read"
	PolicyTest     Permission = "policy.test"
	PolicyExplain  Permission = "policy.explain"
	ReferenceWrite Permission = "reference.write"
	ReferenceRead  Permission = "reference.read"
	BindingWrite   Permission = "binding.write"
	BindingRead    Permission = "binding.read"
	AuditRead      Permission = "audit.read"
	AuditSign      Permission = "audit.sign"
	AdminManage    Permission = "admin.manage"
	AdminRead      Permission = "admin.read"
	PluginManage   Permission = "plugin.manage"
	StatusRead     Permission = "status.read"
	// What follows is about the trustee as a whole, and takes an administrator
	// of every tenant.
	TenantManage Permission = "tenant.manage"
	TenantRead   Permission = "tenant.read"
	KeyRotate    Permission = "key.rotate"
	KeyRead      Permission = "key.read"
	Backup       Permission = "backup"
)

// whole reports whether a permission is about the trustee as a whole.
func (p Permission) whole() bool {
	return slices.Contains([]Permission{TenantManage, TenantRead, KeyRotate, KeyRead, Backup}, p)
}

// Permissions lists all of them.
func Permissions() []Permission {
	return []Permission{
		ResourceWrite, ResourceList, PolicyWrite, PolicyRead, PolicyTest, PolicyExplain, ReferenceWrite, ReferenceRead,
		BindingWrite, BindingRead, AuditRead, AuditSign, AdminManage, AdminRead, PluginManage, StatusRead,
		TenantManage, TenantRead, KeyRotate, KeyRead, Backup,
	}
}

// Roles lists the roles there are.
func Roles() []string {
	return []string{admin.RoleAdmin, admin.RolePolicyAuthor, admin.RoleSecretWriter, admin.RoleAuditor}
}

// gives reports whether a role includes a permission. A role that is not
// listed here gives none.
func gives(role string, p Permission) bool {
	switch role {
	case admin.RoleAdmin:
		return true
	case admin.RolePolicyAuthor:
		return slices.Contains([]Permission{
			PolicyWrite, PolicyRead, PolicyTest, PolicyExplain, ReferenceWrite, ReferenceRead, ResourceList, BindingRead, StatusRead,
		}, p)
	case admin.RoleSecretWriter:
		return slices.Contains([]Permission{
			ResourceWrite, ResourceList, BindingWrite, BindingRead, PluginManage, PolicyRead, ReferenceRead, StatusRead,
		}, p)
	case admin.RoleAuditor:
		return slices.Contains([]Permission{
			AuditRead, AuditSign, PolicyExplain, PolicyRead, ReferenceRead, BindingRead, ResourceList, AdminRead, TenantRead, KeyRead, StatusRead,
		}, p)
	}
	return false
}

// rolesWith names the roles that include a permission.
func rolesWith(p Permission) string {
	return strings.Join(slices.DeleteFunc(Roles(), func(r string) bool { return !gives(r, p) }), ", ")
}

// Principal is who a valid token speaks for.
type Principal struct {
	// Subject is the token's sub, for the record.
	Subject string
	// Method is "key" or "oidc".
	Method string
	// KeyID is [store.AdminID] of the key that signed the token, for the method "key".
	KeyID string
	Roles []string
	// Tenants that the principal may administer; [tenant.All] is every one.
	Tenants []tenant.Name
}

// Everywhere reports whether the principal administers every tenant.
func (p Principal) Everywhere() bool { return slices.Contains(p.Tenants, tenant.All) }

// Reaches reports whether the principal may administer a tenant.
func (p Principal) Reaches(t tenant.Name) bool {
	return p.Everywhere() || slices.Contains(p.Tenants, t)
}

// May reports whether the roles include a permission.
func (p Principal) May(x Permission) bool {
	return (!x.whole() || p.Everywhere()) && slices.ContainsFunc(p.Roles, func(r string) bool { return gives(r, x) })
}
