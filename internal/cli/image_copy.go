package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/cli/imagetool"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/secret"
)

const destinationHelp = `DESTINATION is a registry's reference with a tag, oci:DIR:TAG, oci-archive:FILE:TAG
or docker-archive:FILE:REFERENCE. `

func (a *app) imageCopyCommand() *cobra.Command {
	var f imageFlags
	c := &cobra.Command{
		Use: "copy SOURCE DESTINATION", Short: "Copy an image as it is, checking all of it",
		Long: `Copy an image as it is: the digest stays, and cosign's signatures come along.
Every digest is checked on the way, and of layers that are not encrypted what they
unpack to as well; the tag is set last.

SOURCE is ` + sourceHelp + `.
` + destinationHelp + `The last keeps neither digest nor signatures, and
refuses an image with encrypted layers, which it cannot hold.`,
		Example: `  coffer image copy docker://registry.example/shop/app:v1 oci-archive:app.tar:v1
  coffer image copy oci:./app:v1 registry.example/shop/app:v1 --platform linux/arm64`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withImages(c, &f, func(w *imageWork) error {
				r, err := w.transfer(args[0], args[1], func(src *run.Source, dst *imagetool.Destination) (*imagetool.Result, error) {
					if dst.Lossy() {
						w.ui.Status("%s keeps neither digest nor signatures", args[1])
					}
					return imagetool.Copy(w.ctx, src, src.Ref, dst, w.tool)
				})
				if err != nil {
					return fmt.Errorf("copy %s: %w", args[0], err)
				}
				return a.printImage(w, r)
			})
		},
	}
	f.add(c, "default: all of them")
	return c
}

// printImage prints what was written.
func (a *app) printImage(w *imageWork, r *imagetool.Result) error {
	w.ui.Close()
	return a.done(r, "%s", r.Reference)
}

type encryptFlags struct {
	imageFlags
	key, keyFile string
	layers       []int
	register     bool
	client       adminFlags
}

func (a *app) imageEncryptCommand() *cobra.Command {
	var f encryptFlags
	c := &cobra.Command{
		Use: "encrypt SOURCE DESTINATION --key URI", Short: "Encrypt an image's layers",
		Long: `Encrypt an image's layers (ocicrypt, AES_256_CTR_HMAC_SHA256) for guests that the
trustee gives the key URI. The layers keep their compression; media types become
OCI's, since Docker's know no encryption. Signatures of the source are not copied:
they are of another image.

Without --key-file a new key is made and put into the trustee, unless the trustee
has one already. With it, the trustee is told only with --register.

SOURCE is ` + sourceHelp + `.
DESTINATION is a registry's reference with a tag, oci:DIR:TAG or oci-archive:FILE:TAG.`,
		Example: `  coffer image encrypt oci:./app:v1 registry.example/shop/app:v1 --key kbs:///shop/image/app
  coffer image encrypt docker-archive:app.tar oci:./out:v1 --key kbs:///shop/image/app --key-file app.key --layer -1`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error { return a.imageEncrypt(c, &f, args[0], args[1]) },
	}
	flags := c.Flags()
	flags.StringVar(&f.key, "key", "", "KBS URI of the key to encrypt for: kbs:///REPOSITORY/TYPE/TAG")
	flags.StringVar(&f.keyFile, "key-file", "", "file with the key's 32 bytes")
	flags.IntSliceVar(&f.layers, "layer", nil, "layer to encrypt, from 0, the lowest, or from -1, the highest (repeatable; default: all)")
	flags.BoolVar(&f.register, "register", false, "put the key of --key-file into the trustee")
	f.add(c, "default: all of them")
	f.client.add(c)
	return c
}

func (a *app) imageEncrypt(c *cobra.Command, f *encryptFlags, source, destination string) error {
	if f.key == "" {
		return usagef("--key: expected the KBS URI of the key to encrypt for")
	}
	uri, err := kbs.ParseResourceURI(f.key)
	if err != nil {
		return usagef("--key: %w", err)
	}
	var key secret.Bytes
	if f.keyFile != "" {
		raw, err := readKeyPath(f.keyFile)
		if err != nil {
			return usagef("--key-file: %w", err)
		}
		key = secret.New(raw)
		if !f.register {
			if err := offline(c, "encrypting with --key-file, without --register,"); err != nil {
				return err
			}
			return a.encryptFor(c, f, uri, key, nil, source, destination)
		}
	} else {
		raw := make([]byte, crypt.KeySize)
		if _, err := rand.Read(raw); err != nil {
			return err
		}
		key = secret.New(raw)
	}
	defer key.Clear()
	return a.withAdmin(c, f.client, func(client *admin.Client) error {
		return a.encryptFor(c, f, uri, key, client, source, destination)
	})
}

// encryptFor encrypts under the key, after client, if there is one, has put it
// into the trustee.
func (a *app) encryptFor(c *cobra.Command, f *encryptFlags, uri kbs.ResourceURI, key secret.Bytes, client *admin.Client, source, destination string) error {
	return a.withImages(c, &f.imageFlags, func(w *imageWork) error {
		r, err := w.transfer(source, destination, func(src *run.Source, dst *imagetool.Destination) (*imagetool.Result, error) {
			if dst.Lossy() {
				return nil, usageError{&imagetool.EncryptionLostError{Destination: dst.Name()}}
			}
			if client != nil {
				if err := putImageKey(w.ctx, client, uri, key, f.keyFile == ""); err != nil {
					return nil, err
				}
			}
			return imagetool.Encrypt(w.ctx, src, src.Ref, dst, imagetool.Encryption{
				Recipients: []encrypt.Recipient{{KID: uri.String(), Key: key}}, Layers: f.layers, Rand: rand.Reader,
			}, w.tool)
		})
		if err != nil {
			return fmt.Errorf("encrypt %s: %w", source, err)
		}
		return a.printImage(w, r)
	})
}

// putImageKey puts a key into the trustee. A new one must not take the place of
// one that other images need.
func putImageKey(ctx context.Context, client *admin.Client, uri kbs.ResourceURI, key secret.Bytes, isNew bool) error {
	if isNew {
		have, err := client.ResourceVersions(ctx, uri)
		if refused, ok := errors.AsType[*kbs.StatusError](err); err != nil && (!ok || refused.Status != http.StatusNotFound) {
			return fmt.Errorf("ask the trustee for %s: %w", uri, err)
		}
		if len(have) > 0 {
			return hint.New(fmt.Errorf("the trustee has a key %s already, and images encrypted for it would become unreadable if a new one took its place", uri),
				"give its content with --key-file, or take another --key")
		}
	}
	if err := client.SetResource(ctx, uri, key); err != nil {
		return fmt.Errorf("put %s into the trustee: %w", uri, err)
	}
	return nil
}

func (a *app) imageDecryptCommand() *cobra.Command {
	var (
		f     imageFlags
		files []string
	)
	c := &cobra.Command{
		Use: "decrypt SOURCE DESTINATION --key-file URI=FILE", Short: "Decrypt an image's layers",
		Long: `Decrypt the encrypted layers of an image with keys in files. Each layer's MAC, its
digest and what it unpacks to are checked before anything of it is written; layers
that are not encrypted are copied. Signatures of the source are not copied.

SOURCE is ` + sourceHelp + `.
` + destinationHelp,
		Example: `  coffer image decrypt oci:./encrypted:v1 oci:./plain:v1 --key-file kbs:///shop/image/app=app.key`,
		Args:    args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			keys, err := readKeyFiles(files)
			if err != nil {
				return err
			}
			if len(keys) == 0 {
				return usagef("--key-file: expected URI=FILE, the key that the image was encrypted for; `coffer image inspect` shows which it is")
			}
			return a.withImages(c, &f, func(w *imageWork) error {
				r, err := w.transfer(args[0], args[1], func(src *run.Source, dst *imagetool.Destination) (*imagetool.Result, error) {
					return imagetool.Decrypt(w.ctx, src, src.Ref, dst, keyFiles(keys), w.tool)
				})
				if err != nil {
					return fmt.Errorf("decrypt %s: %w", args[0], err)
				}
				return a.printImage(w, r)
			})
		},
	}
	c.Flags().StringArrayVar(&files, "key-file", nil, "URI=FILE: the 32 bytes of a key (repeatable)")
	f.add(c, "default: all of them")
	return c
}
