package admin

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Admins lists the keys that may administer the tenant.
func (c *Client) Admins(ctx context.Context) ([]Administrator, error) {
	return array[Administrator](ctx, c, AdminsPath)
}

// AddAdmin adds an administrator's key.
func (c *Client) AddAdmin(ctx context.Context, n NewAdministrator) (Administrator, error) {
	return exchange[Administrator](ctx, c, http.MethodPost, AdminsPath, n)
}

// RemoveAdmin revokes a key by its id: its tokens are refused from now on.
func (c *Client) RemoveAdmin(ctx context.Context, id string) error {
	if id == "" || url.PathEscape(id) != id {
		return fmt.Errorf("kbs admin: administrator's id %.64q: expected hexadecimal digits", id)
	}
	_, err := c.do(ctx, call{method: http.MethodDelete, path: AdminsPath + "/" + id})
	return err
}

// Tenants lists the tenants. This and what follows on tenants, token keys and
// backups is for administrators of every tenant, at the default tenant's URL.
func (c *Client) Tenants(ctx context.Context) ([]Tenant, error) {
	return array[Tenant](ctx, c, TenantsPath)
}

// CreateTenant makes a tenant.
func (c *Client) CreateTenant(ctx context.Context, name, description string) error {
	if err := checkTenant(name); err != nil {
		return fmt.Errorf("kbs admin: %w", err)
	}
	return c.send(ctx, http.MethodPost, TenantsPath, NewTenant{Name: name, Description: description})
}

// SetTenantEnabled switches a tenant on or off; nothing of it is lost.
func (c *Client) SetTenantEnabled(ctx context.Context, name string, enabled bool) error {
	if err := checkTenant(name); err != nil {
		return fmt.Errorf("kbs admin: %w", err)
	}
	return c.send(ctx, http.MethodPatch, TenantsPath+"/"+name, TenantChange{Enabled: enabled})
}

// TokenKeys lists the keys of attestation tokens, the signing one first.
func (c *Client) TokenKeys(ctx context.Context) ([]TokenKey, error) {
	return array[TokenKey](ctx, c, TokenKeysPath)
}

// RotateTokenKey makes a new key that signs from now on; alg is ES256, ES384
// or empty for that of the present key. Tokens of the old one stay valid for
// their lifetime.
func (c *Client) RotateTokenKey(ctx context.Context, alg string) (TokenKey, error) {
	return exchange[TokenKey](ctx, c, http.MethodPost, RotatePath, Rotation{Algorithm: alg})
}

// Backup writes a snapshot of the whole trustee's database to w and returns
// its length. Contents of resources stay sealed in it. What was written is
// worthless when an error is returned.
func (c *Client) Backup(ctx context.Context, w io.Writer) (int64, error) {
	token, err := c.token(ctx)
	if err != nil {
		return 0, err
	}
	r := call{method: http.MethodGet, path: BackupPath}
	resp, err := c.http.open(ctx, r, token)
	if err != nil {
		return 0, fmt.Errorf("kbs admin: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
		return 0, (&answer{status: resp.StatusCode, header: resp.Header, body: body}).refusal(r)
	}
	// The stream's own end tells a whole backup from one that broke off.
	counted := &countingWriter{w: w}
	z, err := gzip.NewReader(io.TeeReader(resp.Body, counted))
	if err == nil {
		_, err = io.Copy(io.Discard, z)
	}
	if err != nil {
		return counted.n, fmt.Errorf("kbs admin: backup broke off after %d bytes: %w", counted.n, err)
	}
	return counted.n, nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// WhoAmI says how the trustee sees this client.
func (c *Client) WhoAmI(ctx context.Context) (WhoAmI, error) {
	return exchange[WhoAmI](ctx, c, http.MethodGet, WhoAmIPath, nil)
}

// Status describes the running trustee.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return exchange[Status](ctx, c, http.MethodGet, StatusPath, nil)
}
