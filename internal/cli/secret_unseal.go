package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
)

func (a *app) secretUnsealCommand() *cobra.Command {
	var verifyKey, kekFile, dataKey string
	c := &cobra.Command{
		Use: "unseal --verify-key FILE {--kek-file FILE | --data-key FILE} [FILE]", Short: "Open a sealed envelope with keys in files",
		Long: `Open a sealed envelope with keys in files, as a guest would with the trustee's:
the signature is verified with --verify-key, and the envelope opened with the key
that its trustee keeps (--kek-file) or with the data key itself (--data-key). FILE
or standard input holds the sealed secret. The secret is written to standard
output, byte for byte.

A vault names a secret and holds none. Its signature is verified; what it names
only an attested guest is told.`,
		Example: `  coffer secret unseal db.sealed --verify-key sealing.public.jwk --kek-file kek.bin`,
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			switch {
			case verifyKey == "":
				return usagef("--verify-key: expected the file with the verification key: what nobody has signed is not opened")
			case kekFile != "" && dataKey != "":
				return usagef("--kek-file and --data-key: expected at most one of them")
			}
			text, err := a.readSealed(args)
			if err != nil {
				return err
			}
			key, err := a.readVerifyKey(verifyKey)
			if err != nil {
				return err
			}
			s, err := sealed.Parse(text)
			if err != nil {
				return hint.New(err, "`coffer secret inspect` shows all that is wrong with it")
			}
			p, err := s.Verify(key)
			if err != nil {
				return err
			}
			value, err := a.openPayload(p, kekFile, dataKey)
			if err != nil {
				return err
			}
			defer value.Clear()
			if a.json() {
				return a.printJSON(struct {
					Value []byte `json:"value"` // in base64
				}{value.Expose()})
			}
			_, err = a.env.Stdout.Write(value.Expose())
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&verifyKey, "verify-key", "", "file with the verification key, a JWK")
	f.StringVar(&kekFile, "kek-file", "", "file with the 32 bytes of the trustee's key that the envelope names")
	f.StringVar(&dataKey, "data-key", "", "file with the 32 bytes of the envelope's own key")
	return c
}

// openPayload opens what was verified.
func (a *app) openPayload(p sealed.Payload, kekFile, dataKey string) (secret.Bytes, error) {
	if p.Type == sealed.Vault {
		return secret.Bytes{}, hint.New(fmt.Errorf("the signature is good, but this is a vault: the secret is %q of the provider %s", p.Name, p.Provider),
			"a guest that the trustee attests gets it; nothing in here can be opened")
	}
	if dataKey != "" {
		key, err := a.readKey("--data-key", dataKey)
		if err != nil {
			return secret.Bytes{}, err
		}
		defer key.Clear()
		return p.DecryptData(key)
	}
	if p.Provider != sealed.KBS {
		return secret.Bytes{}, usageError{hint.New(fmt.Errorf("--data-key: expected the file with the key that %s decrypts with %q", p.Provider, p.KeyID), "have the service decrypt payload.encrypted_key")}
	}
	if kekFile == "" {
		return secret.Bytes{}, usageError{errors.New("--kek-file: expected the file with the key that the trustee keeps under " + p.KeyID)}
	}
	kek, err := a.readKey("--kek-file", kekFile)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer kek.Clear()
	key, err := p.UnwrapKey(kek)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer key.Clear()
	return p.DecryptData(key)
}
