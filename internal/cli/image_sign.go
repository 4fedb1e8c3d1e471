package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/protect"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/keyless"
	"github.com/coffer-project/coffer/oci/signature/lookaside"
	"github.com/coffer-project/coffer/secret"
)

const maxPolicyFile = 1 << 20

func (a *app) imageSignCommand() *cobra.Command {
	var (
		f                   imageFlags
		key, form, identity string
	)
	c := &cobra.Command{
		Use: "sign IMAGE --key FILE", Short: "Sign an image where it is",
		Long: `Sign an image with a private key and put the signature beside it: at cosign's tag
(--form tag), or as a sigstore bundle that refers to the image (--form bundle), as
cosign 3 does. An image for several platforms is signed as a whole, unless
--platform names one.

IMAGE is a registry's reference, or oci:DIR[:TAG], which has no name to sign, so
that --identity has to say it.`,
		Example: `  coffer image sign registry.example/shop/app:v1 --key cosign.key
  coffer image sign oci:./app:v1 --key cosign.key --identity registry.example/shop/app:v1`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case key == "":
				return usagef("--key: expected the PEM file with the private key")
			case form != "tag" && form != "bundle":
				return usagef("--form: expected tag or bundle, got %q", form)
			}
			signer, err := protect.ReadSigner("--key", key)
			if err != nil {
				return usageError{err}
			}
			sign := signature.Sign
			if form == "bundle" {
				sign = signature.SignBundle
			}
			return a.withImages(c, &f, func(w *imageWork) error {
				src, ref, err := w.openNamed(args[0], identity)
				if err != nil {
					return err
				}
				defer func() { _ = src.Close() }()
				store, ok := src.Fetcher.(signature.Store)
				if info, err := os.Stat(strings.TrimPrefix(args[0], "oci:")); !ok || strings.Contains(args[0], "-archive:") || err == nil && !info.IsDir() {
					return usagef("%s: expected a registry's reference or oci:DIR[:TAG]; nothing can be added to an archive", args[0])
				}
				top, err := src.Resolve(w.ctx, src.Ref)
				if err != nil {
					return fmt.Errorf("sign %s: %w", args[0], err)
				}
				if w.tool.Platform != nil {
					if top, _, err = build.Inspect(w.ctx, src, src.Ref, *w.tool.Platform); err != nil {
						return fmt.Errorf("sign %s: %w", args[0], err)
					}
				}
				d, err := sign(w.ctx, store, ref.WithDigest(top.Digest), signer, rand.Reader)
				if err != nil {
					return err
				}
				w.ui.Close()
				return a.done(struct {
					Reference string     `json:"reference"`
					Digest    oci.Digest `json:"digest"`
					Form      string     `json:"form"`
					Signature oci.Digest `json:"signature"`
				}{ref.WithDigest(top.Digest).String(), top.Digest, form, d.Digest}, "%s", ref.WithDigest(top.Digest))
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&key, "key", "", "PEM file with the private key (ECDSA, Ed25519 or RSA)")
	flags.StringVar(&form, "form", "tag", "where the signature is put: tag or bundle")
	flags.StringVar(&identity, "identity", "", "the image's name, for one in a layout")
	f.add(c, "default: all of them, as one")
	return c
}

// openNamed opens an image and says which name signatures of it have.
func (w *imageWork) openNamed(name, identity string) (*run.Source, oci.Reference, error) {
	src, err := w.openSource(name)
	if err != nil {
		return nil, oci.Reference{}, err
	}
	ref := src.Ref
	switch {
	case !isLocal(ref) && identity != "":
		err = usagef("--identity: %s has its name already", name)
	case isLocal(ref) && identity == "":
		err = usagef("--identity: expected REGISTRY/REPOSITORY:TAG, the name that is signed; %s has none", name)
	case isLocal(ref):
		if ref, err = oci.ParseReference(identity); err != nil {
			err = usagef("--identity: %w", err)
		}
	}
	if err != nil {
		return nil, oci.Reference{}, errors.Join(err, src.Close())
	}
	return src, ref, nil
}

type imageVerifyFlags struct {
	imageFlags
	policy, key, identity string
	lookaside, policyKeys []string
}

func (a *app) imageVerifyCommand() *cobra.Command {
	var f imageVerifyFlags
	c := &cobra.Command{
		Use: "verify IMAGE {--policy FILE | --key FILE}", Short: "Decide whether an image's signatures suffice",
		Long: `Decide whether an image's signatures suffice, the way a guest does: by a policy
(containers-policy.json), or by one public key. Exit code 0 says that they do, 1
that they do not.

A policy may demand cosign's signatures (sigstoreSigned), also keyless ones by the
authority and the log that it pins (nothing is fetched for that), and simple
signing (signedBy), whose signatures are found as --registries-d says. Keys are
named by path, or by kbs:// URI with --policy-key.

IMAGE is ` + sourceHelp + `.`,
		Example: `  coffer image verify registry.example/shop/app:v1 --key cosign.pub
  coffer image verify oci:./app:v1 --policy policy.json --identity registry.example/shop/app:v1`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if (f.policy == "") == (f.key == "") {
				return usagef("--policy and --key: expected one of them")
			}
			return a.withImages(c, &f.imageFlags, func(w *imageWork) error { return a.imageVerify(w, &f, args[0]) })
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.policy, "policy", "", "containers-policy.json")
	flags.StringVar(&f.key, "key", "", "PEM file with the public key that must have signed")
	flags.StringVar(&f.identity, "identity", "", "the image's name, for one that no registry has")
	flags.StringArrayVar(&f.lookaside, "registries-d", nil, "registries.d document that says where simple signatures are (repeatable)")
	flags.StringArrayVar(&f.policyKeys, "policy-key", nil, "URI=FILE: what the policy names by URI (repeatable)")
	f.add(c, "default: this machine's")
	return c
}

func (a *app) imageVerify(w *imageWork, f *imageVerifyFlags, name string) error {
	policy, err := w.signaturePolicy(f)
	if err != nil {
		return err
	}
	keys, err := readPolicyKeys(f.policyKeys)
	if err != nil {
		return err
	}
	src, ref, err := w.openNamed(name, f.identity)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	platform := oci.GuestPlatform()
	if w.tool.Platform != nil {
		platform = *w.tool.Platform
	}
	top, err := src.Resolve(w.ctx, src.Ref)
	if err != nil {
		return fmt.Errorf("verify %s: %w", name, err)
	}
	chosen, _, err := build.Inspect(w.ctx, src, src.Ref.WithDigest(top.Digest), platform)
	if err != nil {
		return fmt.Errorf("verify %s: %w", name, err)
	}
	subject := signature.Subject{Ref: ref, Digests: []oci.Digest{top.Digest}}
	if chosen.Digest != top.Digest {
		subject.Digests = append(subject.Digests, chosen.Digest)
	}
	verdict, err := policy.Verify(w.ctx, subject, src, signature.Files(keys))
	if err != nil {
		return fmt.Errorf("verify %s: %w", name, err)
	}
	w.ui.Close()
	if a.json() {
		return a.printJSON(struct {
			Accepted bool              `json:"accepted"`
			Digest   oci.Digest        `json:"digest"`
			Verdict  signature.Verdict `json:"verdict"`
		}{true, top.Digest, verdict})
	}
	if verdict.KeyID == "" && verdict.Digest == "" {
		a.printf("accepted without a signature: the policy's entry %s demands none (%s)\n", clean(verdict.Scope), verdict.Requirement)
		return nil
	}
	a.printf("accepted: %s\nby the policy's entry %s (%s)\nsigned by the key %s\nfound at %s\n",
		verdict.Digest, clean(verdict.Scope), verdict.Requirement, verdict.KeyID, clean(verdict.Found))
	return nil
}

// signaturePolicy reads the policy, or makes one of the key.
func (w *imageWork) signaturePolicy(f *imageVerifyFlags) (*signature.Policy, error) {
	if f.key != "" {
		pem, err := readPolicyFile("--key", f.key)
		if err != nil {
			return nil, err
		}
		p, err := signature.SignedBy(pem)
		if err != nil {
			return nil, usagef("--key %s: %w", f.key, err)
		}
		return p, nil
	}
	data, err := readPolicyFile("--policy", f.policy)
	if err != nil {
		return nil, err
	}
	store, err := w.lookaside(f.lookaside)
	if err != nil {
		return nil, err
	}
	p, err := signature.ParsePolicy(data, signature.WithFiles(), signature.WithKeyless(keyless.New()), signature.WithLookaside(store))
	if err != nil {
		return nil, usagef("--policy %s: %w", f.policy, err)
	}
	return p, nil
}

// lookaside finds simple signatures; files are those of this machine.
func (w *imageWork) lookaside(documents []string) (*lookaside.Store, error) {
	texts, err := readFiles("--registries-d", documents)
	if err != nil {
		return nil, err
	}
	raw := make([][]byte, len(texts))
	for i, t := range texts {
		raw[i] = []byte(t)
	}
	config, err := lookaside.ParseConfig(raw...)
	if err != nil {
		return nil, usagef("--registries-d: %w", err)
	}
	client, err := run.RegistryClient(w.o)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot("/")
	if err != nil {
		return nil, err
	}
	return lookaside.New(lookaside.Options{Config: config, Client: client.HTTP(), Files: root, Registry: client})
}

// readPolicyKeys reads flags of the form URI=FILE whose files are no keys of
// images, but public keys, keyrings and certificates.
func readPolicyKeys(flags []string) (keyFiles, error) {
	keys := keyFiles{}
	for _, flag := range flags {
		uri, file, ok := strings.Cut(flag, "=")
		id, err := kbs.ParseResourceURI(uri)
		if !ok || err != nil {
			return nil, usagef("--policy-key: expected URI=FILE, got %q", flag)
		}
		data, err := readPolicyFile("--policy-key", file)
		if err != nil {
			return nil, err
		}
		keys[id.String()] = secret.New(data)
	}
	return keys, nil
}

// readPolicyFile reads a policy, or a file that one names.
func readPolicyFile(flag, path string) ([]byte, error) {
	data, err := readSmall(path, maxPolicyFile)
	if err != nil {
		return nil, usagef("%s: %w", flag, err)
	}
	return data, nil
}
