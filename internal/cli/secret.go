package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
)

func (a *app) secretCommand() *cobra.Command {
	c := group("secret", "Seal secrets, so that they can stand in Kubernetes manifests",
		a.secretSealCommand(), a.secretUnsealCommand(), a.secretInspectCommand(), a.secretKeygenCommand())
	c.Long = `Seal secrets, so that they can stand in Kubernetes manifests and pod policies.

A sealed secret is a line of text, sealed.HEADER.PAYLOAD.SIGNATURE. It names a
resource of the trustee (vault), or carries the secret encrypted with a key that
the trustee or a key management service has (envelope). Only a guest that the
trustee attests opens it, and only if it is signed with the owner's key.

Secrets and keys are read from files or standard input, never from arguments.
Result and files are the same that guest-components' "secret" makes and reads.`
	c.Example = `  coffer secret keygen --kid kbs:///shop/sealing/key --out sealing --put
  coffer secret seal vault --sign-key sealing.private.jwk --resource kbs:///shop/db/password --put password.txt
  coffer secret seal envelope --sign-key sealing.private.jwk --kek kbs:///shop/sealing/kek password.txt`
	return c
}

// resourceURI is a resource as a guest will ask for it, which may name one of
// several trustees.
func resourceURI(flag, s string) (kbs.ResourceURI, error) {
	uri, err := secretURI(s)
	if err != nil {
		return uri, fmt.Errorf("%s: %w", flag, err)
	}
	return uri, nil
}

// readSecret reads a secret from a file, or from standard input ("-").
func (a *app) readSecret(what, path string, limit int64) (secret.Bytes, error) {
	if path == "-" && term.IsTerminal(int(a.env.Stdin.Fd())) {
		return secret.Bytes{}, usageError{hint.New(fmt.Errorf("%s: standard input is a terminal", what), "name a file, or write to standard input")}
	}
	data, err := a.readLimited(path, limit)
	if err != nil {
		return secret.Bytes{}, usagef("%s: %w", what, err)
	}
	return secret.New(data), nil
}

// signer is who signs, and where guests find with what to check it.
type signer struct {
	keyFile, kid string
	putKey       bool

	key *ecdsa.PrivateKey
	uri kbs.ResourceURI
}

func (s *signer) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.keyFile, "sign-key", "", "file with the signing key: a JWK (see `coffer secret keygen`) or PEM, on P-256")
	f.StringVar(&s.kid, "kid", "", "resource with the verification key (default: the kid of the JWK)")
	f.BoolVar(&s.putKey, "put-key", false, "put the verification key into the trustee under --kid")
}

// read reads the key.
func (s *signer) read(a *app) error {
	if s.keyFile == "" {
		return usageError{hint.New(errors.New("--sign-key: expected the signing key's file: guests refuse secrets that nobody signed"), "`coffer secret keygen` makes a key")}
	}
	data, err := a.readSecret("--sign-key", s.keyFile, maxKeyFile)
	if err != nil {
		return err
	}
	defer data.Clear()
	if s.key, err = sealed.ParsePrivateKey(data); err != nil {
		return usagef("--sign-key %s: %w", s.keyFile, err)
	}
	if s.kid == "" {
		s.kid = sealed.KeyID(data.Expose())
	}
	if s.kid == "" {
		return usagef("--kid: expected the resource under which guests find the verification key: %s names none", s.keyFile)
	}
	s.uri, err = resourceURI("--kid", s.kid)
	return err
}

// put puts the verification key into the trustee.
func (s *signer) put(c *cobra.Command, cl *admin.Client) error {
	doc, err := sealed.PublicJWK(&s.key.PublicKey, s.uri.String())
	if err != nil {
		return err
	}
	_, err = cl.PutResource(c.Context(), s.uri, secret.New(doc))
	return err
}

// print prints a sealed secret, whole or as one member of a document.
func (a *app) printSealed(text string) error {
	return a.done(struct {
		Sealed string `json:"sealed"`
	}{text}, "%s", text)
}

func (a *app) secretKeygenCommand() *cobra.Command {
	var (
		kid, out    string
		put, force  bool
		adminAccess adminFlags
	)
	c := &cobra.Command{
		Use: "keygen --kid kbs:///REPOSITORY/TYPE/TAG --out PREFIX", Short: "Make a key that seals secrets",
		Long: `Make a key on P-256 that signs sealed secrets: PREFIX.private.jwk, which stays with
the owner, and PREFIX.public.jwk, which belongs into the trustee under the
resource --kid, where the owner's guests, and nobody else's, may read it. --put
puts it there.`,
		Example: `  coffer secret keygen --kid kbs:///shop/sealing/key --out sealing --put`,
		Args:    args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if kid == "" || out == "" {
				return usagef("--kid and --out: expected both")
			}
			uri, err := resourceURI("--kid", kid)
			if err != nil {
				return err
			}
			if !put {
				if err := offline(c, "without --put, keygen"); err != nil {
					return err
				}
			}
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return err
			}
			private, err := sealed.PrivateJWK(key, uri.String())
			if err != nil {
				return err
			}
			defer private.Clear()
			public, err := sealed.PublicJWK(&key.PublicKey, uri.String())
			if err != nil {
				return err
			}
			files := []string{out + ".private.jwk", out + ".public.jwk"}
			for i, content := range [][]byte{private.Expose(), public} {
				err := writeFile(files[i], force, func(w io.Writer) error {
					_, err := w.Write(append(content[:len(content):len(content)], '\n'))
					return err
				})
				if err != nil {
					return err
				}
			}
			if put {
				err := a.withAdmin(c, adminAccess, func(cl *admin.Client) error {
					_, err := cl.PutResource(c.Context(), uri, secret.New(public))
					return err
				})
				if err != nil {
					return hint.New(err, "the key files are written: put the public one into the trustee with `coffer trustee secret set "+uri.String()+" "+files[1]+"`")
				}
			}
			return a.done(struct {
				Kid     string `json:"kid"`
				Private string `json:"private"`
				Public  string `json:"public"`
				Put     bool   `json:"put"`
			}{uri.String(), files[0], files[1], put}, "%s\n%s", files[0], files[1])
		},
	}
	f := c.Flags()
	f.StringVar(&kid, "kid", "", "resource under which guests find the verification key")
	f.StringVar(&out, "out", "", "prefix of the files to write")
	f.BoolVar(&put, "put", false, "put the verification key into the trustee under --kid")
	f.BoolVar(&force, "force", false, "replace files that exist")
	adminAccess.add(c)
	return c
}

func (a *app) secretInspectCommand() *cobra.Command {
	var verifyKey string
	c := &cobra.Command{
		Use: "inspect [FILE]", Short: "Show what a sealed secret claims, and what guests would refuse it for",
		Long: `Show what a sealed secret claims, and what guests would refuse it for. Nothing is
decrypted, and without --verify-key nothing is verified either: what is shown may
be anybody's. FILE or standard input holds the sealed secret.

Exit code 1 means that guests refuse it.`,
		Example: `  coffer secret inspect db.sealed --verify-key sealing.public.jwk`,
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := a.readSealed(args)
			if err != nil {
				return err
			}
			i := sealed.Inspect(text)
			verified := false
			if verifyKey != "" {
				key, err := a.readVerifyKey(verifyKey)
				if err != nil {
					return err
				}
				if len(i.Problems) == 0 {
					s, err := sealed.Parse(text)
					if err == nil {
						_, err = s.Verify(key)
					}
					if err != nil {
						i.Problems = append(i.Problems, strings.TrimPrefix(err.Error(), "sealed secret: "))
					}
					verified = err == nil
				}
			}
			if err := a.printSealedInspection(i, verified); err != nil {
				return err
			}
			if len(i.Problems) > 0 {
				return exitCode(ExitFailed)
			}
			return nil
		},
	}
	c.Flags().StringVar(&verifyKey, "verify-key", "", "file with the verification key, a JWK: verify the signature, too")
	return c
}

func (a *app) printSealedInspection(i sealed.Inspection, verified bool) error {
	state := "not verified (give --verify-key)"
	switch {
	case verified:
		state = "verified"
	case !i.Signed:
		state = "none"
	case len(i.Problems) > 0:
		state = "not verified"
	}
	if a.json() {
		problems := i.Problems
		if problems == nil {
			problems = []string{}
		}
		return a.printJSON(struct {
			Header    sealed.Header   `json:"header"`
			Payload   json.RawMessage `json:"payload"`
			Signature string          `json:"signature"`
			Problems  []string        `json:"problems"`
		}{i.Header, i.Payload, state, problems})
	}
	fields := map[string]any{"signature": state}
	if i.Header != (sealed.Header{}) {
		fields["header"] = i.Header
	}
	if i.Payload != nil {
		fields["payload"] = i.Payload
	}
	if err := a.printFields(fields); err != nil {
		return err
	}
	for _, p := range i.Problems {
		_, _ = fmt.Fprintf(a.env.Stderr, "problem: %s\n", clean(p))
	}
	if !i.Signed {
		_, _ = fmt.Fprintln(a.env.Stderr, "warning: nobody signed this: anyone who can write the manifest can have made it")
	}
	return nil
}

// readSealed reads a sealed secret from the file named or standard input.
func (a *app) readSealed(args []string) (string, error) {
	path := "-"
	if len(args) > 0 {
		path = args[0]
	}
	data, err := a.readSecret("the sealed secret", path, sealed.MaxBytes+2)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(data.Expose())), nil
}

func (a *app) readVerifyKey(path string) (*ecdsa.PublicKey, error) {
	data, err := a.readSecret("--verify-key", path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	key, err := sealed.ParsePublicKey(data.Expose())
	if err != nil {
		return nil, usagef("--verify-key %s: %w", path, err)
	}
	return key, nil
}
