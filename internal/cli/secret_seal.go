package cli

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
)

// maxPlaintext bounds a secret in an envelope: in base64, twice, it still fits
// into a sealed secret.
const maxPlaintext = 128 << 10

func (a *app) secretSealCommand() *cobra.Command {
	return group("seal", "Seal a reference to a secret, or the secret itself", a.sealVaultCommand(), a.sealEnvelopeCommand())
}

// provider is what both kinds say about a key management service.
type provider struct{ name, settings, annotations string }

func (p *provider) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&p.name, "provider", sealed.KBS, "who has it: kbs (the trustee), aws or aliyun")
	f.StringVar(&p.settings, "provider-settings", "", `JSON object: how guests reach the provider, for example {"region":"eu-west-1"}`)
	f.StringVar(&p.annotations, "annotations", "", "JSON object: what the provider has to know about this secret")
}

// apply puts them into a payload.
func (p *provider) apply(to *sealed.Payload) error {
	if names := []string{sealed.KBS, sealed.AWS, sealed.Aliyun}; !slices.Contains(names, p.name) {
		return usagef("--provider: expected kbs, aws or aliyun, got %q", p.name)
	}
	to.Provider = p.name
	for flag, x := range map[string]struct {
		text string
		to   *sealed.Object
	}{"provider-settings": {p.settings, &to.Settings}, "annotations": {p.annotations, &to.Annotations}} {
		if x.text == "" {
			continue
		}
		if p.name == sealed.KBS {
			return usagef("--%s: the trustee needs none", flag)
		}
		var object map[string]any
		if err := sealed.Into(sealed.Object(x.text), flag, &object); err != nil || object == nil {
			return usagef("--%s: expected a JSON object", flag)
		}
		*x.to = sealed.Object(x.text)
	}
	if p.name != sealed.KBS && p.settings == "" {
		return usagef("--provider-settings: %s needs them, see docs/data-hub.md", p.name)
	}
	return nil
}

func (a *app) sealVaultCommand() *cobra.Command {
	var (
		s                   signer
		p                   provider
		resource, name, put string
		adminAccess         adminFlags
	)
	c := &cobra.Command{
		Use: "vault --sign-key FILE {--resource kbs:///REPOSITORY/TYPE/TAG | --provider P --name NAME}", Short: "Seal the name of a secret that the trustee or a service keeps",
		Long: `Seal the name of a secret that the trustee (--resource) or a key management
service (--provider, --name) keeps. With --put the content of a file, or of
standard input (-), becomes the trustee's resource first.`,
		Example: `  coffer secret seal vault --sign-key sealing.private.jwk --resource kbs:///shop/db/password
  pwgen 32 1 | coffer secret seal vault --sign-key sealing.private.jwk --resource kbs:///shop/db/password --put -
  coffer secret seal vault --sign-key sealing.private.jwk --provider aws --provider-settings '{"region":"eu-west-1"}' --name prod/db`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			payload := sealed.Payload{Type: sealed.Vault, Name: name}
			if err := p.apply(&payload); err != nil {
				return err
			}
			var uri kbs.ResourceURI
			var err error
			switch {
			case p.name == sealed.KBS && (resource == "" || name != ""):
				return usagef("--resource: expected the resource that the trustee keeps (--name is for other providers)")
			case p.name != sealed.KBS && (resource != "" || name == "" || put != ""):
				return usagef("--name: expected what %s calls the secret (--resource and --put are for the trustee)", p.name)
			case p.name == sealed.KBS:
				if uri, err = resourceURI("--resource", resource); err != nil {
					return err
				}
				payload.Name = uri.String()
			}
			if err := s.read(a); err != nil {
				return err
			}
			text, err := sealed.Seal(rand.Reader, payload, s.uri.String(), s.key)
			if err != nil {
				return usageError{err}
			}
			var content secret.Bytes
			if put != "" {
				if content, err = a.readSecret("--put", put, kbs.MaxResourceBytes); err != nil {
					return err
				}
				defer content.Clear()
			}
			return a.putAndPrint(c, adminAccess, &s, text, put != "", func(cl *admin.Client) error {
				_, err := cl.PutResource(c.Context(), uri, content)
				return err
			})
		},
	}
	f := c.Flags()
	s.add(c)
	f.StringVar(&resource, "resource", "", "the trustee's resource")
	f.StringVar(&put, "put", "", "file with the secret to put into the trustee under --resource; - is standard input")
	f.StringVar(&name, "name", "", "what another provider calls the secret")
	p.add(c)
	adminAccess.add(c)
	return c
}

// putAndPrint puts what was asked for into the trustee, and prints the sealed
// secret when it is there.
func (a *app) putAndPrint(c *cobra.Command, flags adminFlags, s *signer, text string, put bool, f func(*admin.Client) error) error {
	if !put && !s.putKey {
		if err := offline(c, "without anything to put there, seal"); err != nil {
			return err
		}
		return a.printSealed(text)
	}
	err := a.withAdmin(c, flags, func(cl *admin.Client) error {
		if s.putKey {
			if err := s.put(c, cl); err != nil {
				return fmt.Errorf("verification key: %w", err)
			}
		}
		if put {
			return f(cl)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.printSealed(text)
}

func (a *app) sealEnvelopeCommand() *cobra.Command {
	var (
		s           signer
		p           provider
		e           envelopeFlags
		adminAccess adminFlags
	)
	c := &cobra.Command{
		Use:   "envelope --sign-key FILE {--kek kbs:///REPOSITORY/TYPE/TAG | --provider P --key-id ID --data-key FILE --encrypted-key FILE} [FILE]",
		Short: "Seal a secret, encrypted with a key that the trustee or a service has",
		Long: `Seal a secret: encrypt it with a new key, and that with a key which the trustee
keeps under --kek. --kek-file holds that key, 32 bytes; without it a new one is
made and put into the trustee, replacing an earlier one. FILE, or standard input,
holds the secret, byte for byte.

For a key management service, have it make a data key: --data-key is the file with
its 32 bytes, --encrypted-key that with the service's encryption of it, and
--key-id the key that it was encrypted with.`,
		Example: `  coffer secret seal envelope --sign-key sealing.private.jwk --kek kbs:///shop/sealing/kek --kek-file kek.bin password.txt
  coffer secret seal envelope --sign-key sealing.private.jwk --provider aws --provider-settings '{"region":"eu-west-1"}' \
    --key-id alias/app --data-key dek.bin --encrypted-key dek.enc < password.txt`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			payload := sealed.Payload{Type: sealed.Envelope}
			if err := p.apply(&payload); err != nil {
				return err
			}
			if err := e.check(p.name); err != nil {
				return err
			}
			if err := s.read(a); err != nil {
				return err
			}
			path := "-"
			if len(args) > 0 {
				path = args[0]
			}
			plaintext, err := a.readSecret("the secret", path, maxPlaintext)
			if err != nil {
				return err
			}
			defer plaintext.Clear()
			kek, uri, err := e.seal(a, &payload, plaintext)
			if err != nil {
				return err
			}
			defer kek.Clear()
			text, err := sealed.Seal(rand.Reader, payload, s.uri.String(), s.key)
			if err != nil {
				return usageError{err}
			}
			return a.putAndPrint(c, adminAccess, &s, text, p.name == sealed.KBS && e.kekFile == "", func(cl *admin.Client) error {
				_, err := cl.PutResource(c.Context(), uri, kek)
				return err
			})
		},
	}
	s.add(c)
	e.add(c)
	p.add(c)
	adminAccess.add(c)
	return c
}

// envelopeFlags say how an envelope is encrypted.
type envelopeFlags struct{ kek, kekFile, wrap, keyID, dataKey, encryptedKey string }

func (e *envelopeFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&e.kek, "kek", "", "the trustee's resource with the key that encrypts the envelope's")
	f.StringVar(&e.kekFile, "kek-file", "", "file with that key's 32 bytes (default: make one and put it into the trustee)")
	f.StringVar(&e.wrap, "wrap", string(sealed.A256GCM), "how the secret is encrypted: A256GCM or A256CTR")
	f.StringVar(&e.keyID, "key-id", "", "what another provider calls its key")
	f.StringVar(&e.dataKey, "data-key", "", "file with a data key's 32 bytes")
	f.StringVar(&e.encryptedKey, "encrypted-key", "", "file with the data key as the provider encrypted it")
}

func (e *envelopeFlags) check(provider string) error {
	foreign := e.keyID != "" || e.dataKey != "" || e.encryptedKey != ""
	switch {
	case e.wrap != string(sealed.A256GCM) && e.wrap != string(sealed.A256CTR):
		return usagef("--wrap: expected A256GCM or A256CTR, got %q", e.wrap)
	case provider == sealed.KBS && (e.kek == "" || foreign):
		return usageError{hint.New(errors.New("--kek: expected the trustee's resource with the key (--key-id, --data-key and --encrypted-key are for other providers)"), "see `coffer secret seal envelope --help`")}
	case provider != sealed.KBS && (e.kek != "" || e.kekFile != "" || e.keyID == "" || e.dataKey == "" || e.encryptedKey == ""):
		return usageError{hint.New(fmt.Errorf("--key-id, --data-key and --encrypted-key: expected all of them for %s (--kek is for the trustee)", provider), "see `coffer secret seal envelope --help`")}
	}
	return nil
}

// seal fills the payload, and returns the trustee's key and where it belongs.
func (e *envelopeFlags) seal(a *app, p *sealed.Payload, plaintext secret.Bytes) (secret.Bytes, kbs.ResourceURI, error) {
	none := func(err error) (secret.Bytes, kbs.ResourceURI, error) { return secret.Bytes{}, kbs.ResourceURI{}, err }
	if p.Provider != sealed.KBS {
		key, err := a.readKey("--data-key", e.dataKey)
		if err != nil {
			return none(err)
		}
		defer key.Clear()
		encrypted, err := a.readSecret("--encrypted-key", e.encryptedKey, maxKeyFile)
		if err != nil {
			return none(err)
		}
		p.KeyID, p.EncryptedKey = e.keyID, base64.StdEncoding.EncodeToString(encrypted.Expose())
		if err := p.EncryptDataWith(rand.Reader, key, plaintext, sealed.Wrap(e.wrap)); err != nil {
			return none(err)
		}
		return none(nil)
	}
	uri, err := resourceURI("--kek", e.kek)
	if err != nil {
		return none(err)
	}
	var kek secret.Bytes
	if e.kekFile != "" {
		kek, err = a.readKey("--kek-file", e.kekFile)
	} else {
		fresh := make([]byte, sealed.KeySize)
		_, err = io.ReadFull(rand.Reader, fresh)
		kek = secret.New(fresh)
	}
	if err != nil {
		return none(err)
	}
	key, err := p.EncryptData(rand.Reader, plaintext, sealed.Wrap(e.wrap))
	if err != nil {
		return none(err)
	}
	defer key.Clear()
	if err := p.WrapKey(rand.Reader, key, kek, uri.String()); err != nil {
		return none(err)
	}
	return kek, uri, nil
}

// readKey reads a key of 32 bytes.
func (a *app) readKey(flag, path string) (secret.Bytes, error) {
	key, err := a.readSecret(flag, path, maxKeyFile)
	if err == nil && key.Len() != sealed.KeySize {
		return secret.Bytes{}, usageError{hint.New(fmt.Errorf("%s %s: expected the %d bytes of a key, got %d", flag, path, sealed.KeySize, key.Len()), "`openssl rand -out FILE 32` makes one")}
	}
	return key, err
}
