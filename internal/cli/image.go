package cli

import (
	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/ui"
	"github.com/coffer-project/coffer/internal/protect"
	"github.com/coffer-project/coffer/kbs/admin"
)

func (a *app) imageCommand() *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Encrypt, decrypt, sign, verify, inspect and copy images", Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(
		a.imageProtectCommand(), a.imageEncryptCommand(), a.imageDecryptCommand(), a.imageSignCommand(),
		a.imageVerifyCommand(), a.imageInspectCommand(), a.imageCopyCommand(),
	)
	return c
}

func (a *app) imageProtectCommand() *cobra.Command {
	var (
		o      protect.Options
		rootCA []string
		client adminFlags
	)
	c := &cobra.Command{
		Use:   "protect SOURCE DESTINATION",
		Short: "Encrypt an image's layers, sign it and push it",
		Long: `Encrypt an image's layers (ocicrypt, AES_256_CTR_HMAC_SHA256), put the key that
wraps the layers' keys into the trustee, sign the result (cosign's key-based
form) and push it.

SOURCE is a registry's reference, oci:DIR[:TAG], oci-archive:FILE[:TAG] or
docker-archive:FILE.
DESTINATION is a registry's reference with a tag, or oci:DIR:TAG.`,
		Example: `  coffer image protect oci:./app:v1 registry.example/shop/app:v1 --key kbs:///shop/image/app --sign-key cosign.key`,
		Args:    args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			// Ended in order, so that no spooled layer is left.
			ctx, stop := notifyInterrupt(c.Context())
			defer stop()
			var err error
			if o.Registry.RootPEMs, o.Registry.HostRootPEMs, err = registryCAs(rootCA); err != nil {
				return err
			}
			if o.KeyURI == "" && o.SignKeyFile == "" {
				return usagef("expected --key, --sign-key or both: there is nothing to protect the image with")
			}
			u := ui.New(a.env.Stderr)
			defer u.Close()
			o.Source, o.Destination, o.UI = args[0], args[1], u
			var result *protect.Result
			work := func(cl *admin.Client) error {
				o.Admin = cl
				result, err = protect.Image(ctx, o)
				return err
			}
			if o.KeyURI == "" {
				err = work(nil)
			} else {
				err = a.withAdmin(c, client, work)
			}
			if err != nil {
				return err
			}
			u.Close()
			if a.json() {
				return a.printJSON(result)
			}
			a.printf("%s\n", result.Reference)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.KeyURI, "key", "", "KBS URI of the key to encrypt for; a new key is made and put into the trustee unless --key-file is given")
	f.StringVar(&o.KeyFile, "key-file", "", "file with the key's 32 bytes")
	f.StringVar(&o.SignKeyFile, "sign-key", "", "PEM file with the private key to sign with (ECDSA, Ed25519 or RSA)")
	f.StringVar(&o.Registry.AuthFile, "authfile", "", "docker auth.json with the registry's credentials")
	f.StringArrayVar(&rootCA, "registry-ca", nil, "[HOST[:PORT]=]FILE: PEM certificates to trust for registries; with HOST for that one, which then trusts no other (repeatable)")
	f.StringArrayVar(&o.Registry.PlainHTTP, "plain-http", nil, "registry host[:port] to use without TLS (repeatable)")
	client.add(c)
	return c
}
