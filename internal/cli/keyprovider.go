package cli

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/keyprovider"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/secret"
)

type keyproviderFlags struct {
	listen, config, keyDir             string
	keyFiles                           []string
	register, allowSample, allowRemote bool
	client                             adminFlags
}

func (a *app) keyproviderCommand() *cobra.Command {
	var o keyproviderFlags
	c := &cobra.Command{
		Use:   "keyprovider",
		Short: "Let skopeo, buildah and other programs encrypt images for guests",
		Long: `Serve ocicrypt's key provider protocol (gRPC, keyprovider.KeyProviderService)
under the name attestation-agent until interrupted, so that skopeo, buildah,
nerdctl and others that have ocicrypt encrypt images for guests and read them:

  skopeo copy --encryption-key provider:attestation-agent:PARAMETERS …
  skopeo copy --decryption-key provider:attestation-agent:any …

PARAMETERS are pairs with "::" between them, as coco_keyprovider takes them:

  keypath=FILE       file with the key's 32 bytes
  keyid=URI          what guests ask the trustee for: kbs:///shop/image/app
  algorithm=NAME     A256GCM (default) or A256CTR
  sample=true        the key that everybody knows, with --allow-sample only

With --register, keys are put into the trustee before anything is encrypted for
them, and without keypath or keyid a new key or id is made. Otherwise both are
needed, and the trustee has to get the key from the owner. Unwrapping uses the
keys of --key-file only.

Whoever can connect can have keys wrapped and unwrapped, and name files for
keypath: on a machine with other users, listen on unix:PATH.`,
		Example: `  coffer keyprovider --config ocicrypt.json --key-file kbs:///shop/image/app=app.key &
  OCICRYPT_KEYPROVIDER_CONFIG=ocicrypt.json skopeo copy \
    --encryption-key provider:attestation-agent:keypath=app.key::keyid=kbs:///shop/image/app \
    docker://registry.example/app:v1 docker://registry.example/app:v1-encrypted`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return a.keyprovider(c, &o) },
	}
	f := c.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:50000", "ADDRESS:PORT of loopback, or unix:PATH; port 0 takes any")
	f.StringVar(&o.config, "config", "", "file to write for the variable OCICRYPT_KEYPROVIDER_CONFIG")
	f.StringArrayVar(&o.keyFiles, "key-file", nil, "URI=FILE: the 32 bytes of a key (repeatable)")
	f.StringVar(&o.keyDir, "key-dir", "", "directory that keypath is below; callers can name no other files")
	f.BoolVar(&o.register, "register", false, "put keys into the trustee")
	f.BoolVar(&o.allowSample, "allow-sample", false, "allow sample=true, whose key everybody knows")
	f.BoolVar(&o.allowRemote, "allow-remote", false, "allow --listen on other addresses than loopback, without TLS")
	o.client.add(c)
	return c
}

func (a *app) keyprovider(c *cobra.Command, o *keyproviderFlags) error {
	ctx, stop := notifyInterrupt(c.Context())
	defer stop()
	c.SetContext(ctx)
	keys, err := readKeyFiles(o.keyFiles)
	if err != nil {
		return err
	}
	options := keyprovider.Options{
		ReadKey: readKeyPath, Keys: keys, AllowSample: o.allowSample, Rand: rand.Reader,
		Logger: slog.New(slog.NewTextHandler(a.env.Stderr, nil)),
	}
	if o.keyDir != "" {
		root, err := os.OpenRoot(o.keyDir)
		if err != nil {
			return usagef("--key-dir: %w", err)
		}
		defer func() { _ = root.Close() }()
		options.ReadKey = func(name string) ([]byte, error) { return readKeyBelow(root, name) }
	}
	if !o.register {
		if err := offline(c, "coffer keyprovider without --register"); err != nil {
			return err
		}
		return a.serveKeys(ctx, o, options)
	}
	return a.withAdmin(c, o.client, func(client *admin.Client) error {
		options.Registrar = client
		return a.serveKeys(ctx, o, options)
	})
}

func (a *app) serveKeys(ctx context.Context, o *keyproviderFlags, options keyprovider.Options) error {
	p, err := keyprovider.New(options)
	if err != nil {
		return usagef("%w", err)
	}
	l, err := keyprovider.Listen(ctx, o.listen, o.allowRemote)
	if err != nil {
		return usageError{hint.New(fmt.Errorf("--listen: %w", err), "see `coffer keyprovider --help`")}
	}
	config, err := keyprovider.Configuration(l.Addr())
	if err != nil {
		_ = l.Close()
		return err
	}
	if o.config != "" {
		if err := os.WriteFile(o.config, config, 0o644); err != nil { //nolint:gosec // it holds no secret, and other users' programs may read it
			_ = l.Close()
			return fmt.Errorf("--config: %w", err)
		}
	}
	if a.json() {
		err = a.printJSON(map[string]string{"listening": l.Addr().String()})
	} else {
		a.printf("listening on %s\n", l.Addr())
	}
	if err != nil {
		_ = l.Close()
		return err
	}
	return p.Serve(ctx, l)
}

// readKeyFiles reads flags of the form URI=FILE.
func readKeyFiles(flags []string) (map[string]secret.Bytes, error) {
	keys := map[string]secret.Bytes{}
	for _, f := range flags {
		uri, file, ok := strings.Cut(f, "=")
		if !ok || file == "" {
			return nil, usagef("--key-file: expected URI=FILE, got %q", f)
		}
		id, err := kbs.ParseResourceURI(uri)
		if err != nil {
			return nil, usagef("--key-file: %w", err)
		}
		key, err := readKeyPath(file)
		if err != nil {
			return nil, usagef("--key-file: %w", err)
		}
		if _, twice := keys[id.String()]; twice {
			return nil, usagef("--key-file: %s occurs twice", id)
		}
		keys[id.String()] = secret.New(key)
	}
	return keys, nil
}

// readKeyPath reads the file of a key.
func readKeyPath(name string) ([]byte, error) { return readKeyWith(os.OpenFile, name) }

// readKeyBelow reads the file of a key that must not lead out of root.
func readKeyBelow(root *os.Root, name string) ([]byte, error) {
	return readKeyWith(root.OpenFile, name)
}

func readKeyWith(open func(string, int, os.FileMode) (*os.File, error), name string) ([]byte, error) {
	f, err := open(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not stand still
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() != crypt.KeySize {
		return nil, fmt.Errorf("%s: expected a file of %d bytes, got one of %d (%s)", name, crypt.KeySize, info.Size(), info.Mode())
	}
	key := make([]byte, crypt.KeySize)
	if _, err := io.ReadFull(f, key); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}
