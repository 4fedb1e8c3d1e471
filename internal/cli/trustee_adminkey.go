package cli

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs/admin"
)

func (t *trusteeGroup) adminKeyCommand() *cobra.Command {
	c := group("admin-key", "Make, add and remove administrators' keys",
		t.adminKeyNewCommand(), t.adminKeyListCommand(), t.adminKeyAddCommand(), t.adminKeyRemoveCommand())
	c.Example = `  coffer trustee admin-key new alice.pem
  coffer trustee admin-key add alice alice.pem.pub --roles policy-author,auditor
  coffer trustee admin-key remove 4c1b…`
	return c
}

// keyID is how the trustee names a key: the first 16 bytes of its SHA-256.
func keyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:16])
}

func (t *trusteeGroup) adminKeyNewCommand() *cobra.Command {
	return &cobra.Command{
		Use: "new FILE", Short: "Make an Ed25519 key: FILE, and FILE.pub for the trustee",
		Long: `Make an administrator's Ed25519 key and print its id. FILE (PEM, PKCS #8, mode
0600) is what --admin-key takes and stays with the administrator; FILE.pub is
what the trustee is given. No trustee is asked, and no file replaced.`,
		Example: `  coffer trustee admin-key new alice.pem`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if err := offline(c, "admin-key new"); err != nil {
				return err
			}
			file, public := args[0], args[0]+".pub"
			for _, name := range []string{file, public} {
				if _, err := os.Lstat(name); err == nil {
					return usageError{hint.New(fmt.Errorf("%s: exists already", name), "a key is not replaced: name another file")}
				}
			}
			pub, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return err
			}
			private, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				return err
			}
			der, err := x509.MarshalPKIXPublicKey(pub)
			if err != nil {
				return err
			}
			defer clear(private)
			if err := writePEM(file, "PRIVATE KEY", private); err != nil {
				return err
			}
			if err := writePEM(public, "PUBLIC KEY", der); err != nil {
				return errors.Join(err, os.Remove(file))
			}
			return t.done(struct {
				ID         string `json:"id"`
				PrivateKey string `json:"private_key_file"`
				PublicKey  string `json:"public_key_file"`
			}{keyID(pub), file, public}, "%s  %s", keyID(pub), public)
		},
	}
}

func writePEM(path, typ string, der []byte) error {
	return writeFile(path, false, func(w io.Writer) error {
		return pem.Encode(w, &pem.Block{Type: typ, Bytes: der})
	})
}

func (t *trusteeGroup) adminKeyListCommand() *cobra.Command {
	c := t.lists("list", "List the keys that may administer the tenant", func(c *cobra.Command, cl *admin.Client) error {
		list, err := cl.Admins(c.Context())
		if err != nil {
			return err
		}
		return t.table(list, "ID\tNAME\tTENANT\tROLES\tCREATED", func(w io.Writer) {
			for _, x := range list {
				created := stamp(x.Created)
				if x.Configured {
					created = "configured"
				}
				row(w, x.ID, x.Name, x.Tenant, strings.Join(x.Roles, ","), created)
			}
		})
	})
	c.Example = `  coffer trustee admin-key list --output json`
	return c
}

func (t *trusteeGroup) adminKeyAddCommand() *cobra.Command {
	var (
		roles []string
		every bool
	)
	c := &cobra.Command{
		Use: "add NAME PUBLIC-KEY-FILE --roles ROLE[,ROLE…]", Short: "Let a key administer the tenant, with roles, and print its id",
		Long: `Let a key administer the tenant and print its id. Roles: admin (everything),
policy-author (policies and reference values), secret-writer (secrets and
bindings), auditor (reads everything but contents).`,
		Example: `  coffer trustee admin-key add alice alice.pem.pub --roles policy-author,auditor
  coffer trustee admin-key add ops ops.pem.pub --roles admin --every-tenant`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			if len(roles) == 0 {
				return usageError{hint.New(errors.New("--roles: expected at least one"), "roles are "+strings.Join(adminRoles(), ", "))}
			}
			for _, r := range roles {
				if !slices.Contains(adminRoles(), r) {
					return usagef("--roles: expected %s, got %q", strings.Join(adminRoles(), ", "), r)
				}
			}
			public, err := readPublicKey(args[1])
			if err != nil {
				return err
			}
			n := admin.NewAdministrator{Name: args[0], Roles: roles, PublicKey: public}
			if every {
				n.Tenant = "*"
			}
			return t.ask(c, func(cl *admin.Client) error {
				x, err := cl.AddAdmin(c.Context(), n)
				if err != nil {
					return err
				}
				return t.done(x, "%s", clean(x.ID))
			})
		},
	}
	c.Flags().StringSliceVar(&roles, "roles", nil, "what the key may claim: "+strings.Join(adminRoles(), ", "))
	c.Flags().BoolVar(&every, "every-tenant", false, "for every tenant, not only this one; takes an administrator of every tenant")
	return c
}

// readPublicKey reads an Ed25519 public key and returns it in PEM. A private
// key is refused: it does not have to leave its machine.
func readPublicKey(path string) (string, error) {
	data, err := readSmall(path, maxKeyFile)
	if err != nil {
		return "", usageError{err}
	}
	block, _ := pem.Decode(data)
	switch {
	case block == nil:
		return "", usagef("%s: expected a PEM block, found none", path)
	case strings.HasSuffix(block.Type, "PRIVATE KEY"):
		return "", usageError{hint.New(fmt.Errorf("%s: is a private key: expected the public one", path), "`coffer trustee admin-key new FILE` writes it to FILE.pub; `openssl pkey -pubout` makes it of another key")}
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return "", usagef("%s: %w", path, err)
	}
	if _, ok := parsed.(ed25519.PublicKey); !ok {
		return "", usagef("%s: expected an Ed25519 key, got %T", path, parsed)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: block.Bytes})), nil
}

func (t *trusteeGroup) adminKeyRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove ID", Short: "Revoke a key: its tokens are refused from now on",
		Example: `  coffer trustee admin-key remove 4c1b…`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			id := args[0]
			if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
				return usageError{hint.New(fmt.Errorf("%.80q: expected a key's id of 32 hexadecimal digits", id), "`coffer trustee admin-key list` shows them")}
			}
			return t.ask(c, func(cl *admin.Client) error {
				if err := cl.RemoveAdmin(c.Context(), id); err != nil {
					return err
				}
				return t.done(struct {
					ID      string `json:"id"`
					Removed bool   `json:"removed"`
				}{id, true}, "")
			})
		},
	}
}
