package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/trustee/appraisal/explain"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/token"
)

// explanation is what `coffer explain --output json` prints.
type explanation struct {
	// Verified is whether the signature was checked, with --jwks.
	Verified bool       `json:"verified"`
	Issuer   string     `json:"issuer,omitempty"`
	Issued   *time.Time `json:"issued,omitempty"`
	Expires  *time.Time `json:"expires,omitempty"`
	Warnings []string   `json:"warnings,omitempty"`
	explain.Report
}

func (a *app) explainCommand() *cobra.Command {
	var policyFile, keys string
	c := &cobra.Command{
		Use: "explain TOKEN", Short: "Explain an attestation token: what each trust value means, why, and what would change it",
		Long: `Explain an attestation token (EAR): what each trust value means, which line of the
policy set it, and what would change it. TOKEN is a file with the token, the token
itself, or "-" for standard input; the answer {"token": …} of a trustee or of a guest
is understood as well.

Lines of the built-in policies are known; for a policy of your own give its text with
--policy. The signature is checked where --jwks names the trustee's keys.`,
		Example: `  coffer explain token.jwt
  curl -s 'http://127.0.0.1:8006/aa/token?token_type=kbs' | coffer explain -
  coffer explain token.jwt --policy default_cpu.rego --jwks jwks.json --output json`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			text, err := readAttestationToken(args[0], c.InOrStdin())
			if err != nil {
				return usageError{err}
			}
			policy := ""
			if policyFile != "" {
				b, err := readSmall(policyFile, maxSmall)
				if err != nil {
					return usagef("--policy: %w", err)
				}
				policy = string(b)
			}
			x, err := explainToken(text, policy, keys, time.Now())
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(x)
			}
			return a.printExplained(x)
		},
	}
	c.Flags().StringVar(&policyFile, "policy", "", "file with the attestation policy that judged, where it is not a built-in one")
	c.Flags().StringVar(&keys, "jwks", "", "file with the trustee's keys (/.well-known/jwks.json), to check the token's signature")
	return c
}

// readAttestationToken finds the token in an argument: a file, standard input, or itself.
func readAttestationToken(arg string, stdin io.Reader) (string, error) {
	var raw []byte
	var err error
	switch {
	case arg == "-":
		raw, err = io.ReadAll(io.LimitReader(stdin, token.MaxBytes+1))
	case strings.Count(arg, ".") == 2 && strings.HasPrefix(arg, "eyJ"):
		raw = []byte(arg)
	default:
		var f *os.File
		if f, err = os.Open(filepath.Clean(arg)); err == nil {
			raw, err = io.ReadAll(io.LimitReader(f, token.MaxBytes+1))
			_ = f.Close()
		}
	}
	if err != nil {
		return "", err
	}
	if len(raw) > token.MaxBytes {
		return "", fmt.Errorf("token: expected at most %d bytes", token.MaxBytes)
	}
	text := strings.TrimSpace(string(raw))
	if strings.HasPrefix(text, "{") {
		var wrapped struct {
			Token string `json:"token"`
		}
		if err := json.Unmarshal([]byte(text), &wrapped); err != nil || wrapped.Token == "" {
			return "", errors.New(`token: expected a token or {"token": …}, got other JSON`)
		}
		text = wrapped.Token
	}
	return text, nil
}

// algorithms are those that attestation services sign with.
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.RS384, jose.PS256, jose.PS384, jose.EdDSA}
}

func explainToken(text, policy, keys string, now time.Time) (*explanation, error) {
	parsed, err := jose.ParseSignedCompact(text, algorithms())
	if err != nil {
		return nil, usageError{hint.New(fmt.Errorf("token: expected a signed JWT: %w", err), "a token is three parts of base64url with dots between them; `coffer explain --help` says where to get one")}
	}
	x := &explanation{}
	payload := parsed.UnsafePayloadWithoutVerification()
	if keys == "" {
		x.Warnings = append(x.Warnings, "the signature was not checked (no --jwks): anybody could have written this token")
	} else if payload, err = verifyToken(parsed, keys); err != nil {
		return nil, err
	} else {
		x.Verified = true
	}
	var claims ear.Claims
	if err := json.Unmarshal(payload, &claims); err != nil || len(claims.Submods) == 0 {
		if err == nil {
			err = errors.New("it has no submods")
		}
		return nil, usageError{fmt.Errorf("token: expected an EAT attestation result: %w", err)}
	}
	if err := checkClaims(&claims); err != nil {
		return nil, usageError{fmt.Errorf("token: %w", err)}
	}
	x.Issuer = claims.Issuer
	x.Issued, x.Expires = dateOf(claims.IssuedAt), dateOf(claims.Expires)
	if x.Expires != nil && now.After(*x.Expires) {
		x.Warnings = append(x.Warnings, "the token expired at "+stamp(*x.Expires))
	}
	for _, name := range slices.Sorted(maps.Keys(claims.Submods)) {
		m := claims.Submods[name]
		if worst := m.Vector.Status(); ear.Worse(m.Status, worst) != m.Status {
			x.Warnings = append(x.Warnings, fmt.Sprintf("submods: %.80q: ear.status says %s, but its trustworthiness vector is %s", name, m.Status, worst))
		}
	}
	x.Report = explain.Explain(&claims, policy)
	return x, nil
}

// lastSecond is the end of the year 9999, the last that RFC 3339 can write.
const lastSecond = 253402300799

// checkClaims refuses what no explanation can be given of.
func checkClaims(c *ear.Claims) error {
	for name, t := range map[string]int64{"iat": c.IssuedAt, "exp": c.Expires} {
		if t < 0 || t > lastSecond {
			return fmt.Errorf("%s: expected seconds since 1970 up to %d, got %d", name, int64(lastSecond), t)
		}
	}
	for name, m := range c.Submods {
		switch m.Status {
		case ear.None, ear.Affirming, ear.Warning, ear.Contraindicated:
		default:
			return fmt.Errorf("submods: %.80q: ear.status: expected none, affirming, warning or contraindicated, got %.40q", name, m.Status)
		}
	}
	return nil
}

// dateOf is nil for none.
func dateOf(seconds int64) *time.Time {
	if seconds == 0 {
		return nil
	}
	t := time.Unix(seconds, 0).UTC()
	return &t
}

// verifyToken checks the signature with a key of the set in the file.
func verifyToken(parsed *jose.JSONWebSignature, file string) ([]byte, error) {
	raw, err := readSmall(file, maxSmall)
	if err != nil {
		return nil, usagef("--jwks: %w", err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, usagef("--jwks: %s: expected a JSON Web Key Set: %w", file, err)
	}
	for _, k := range set.Keys {
		if !k.IsPublic() {
			continue
		}
		if payload, err := parsed.Verify(k.Key); err == nil {
			return payload, nil
		}
	}
	return nil, hint.New(fmt.Errorf("token: its signature is by none of the %d keys in %s", len(set.Keys), file), "fetch the trustee's current keys from /.well-known/jwks.json, or leave --jwks out to read the token without trust")
}

func (a *app) printExplained(x *explanation) error {
	for _, w := range x.Warnings {
		_, _ = fmt.Fprintf(a.env.Stderr, "warning: %s\n", clean(w))
	}
	a.printf("status: %s", x.Status)
	if x.Issuer != "" {
		a.printf(", by %s", clean(x.Issuer))
	}
	if x.Expires != nil {
		a.printf(", until %s", stamp(*x.Expires))
	}
	a.printf("\n")
	for _, m := range x.Submods {
		a.printf("\n%s: %s", clean(m.Name), m.Status)
		if m.TEE != "" {
			a.printf(", %s", m.TEE)
		}
		if m.Simulated {
			a.printf(", simulated")
		}
		if m.Policy != "" {
			a.printf(", judged by %s", clean(m.Policy))
		}
		a.printf("\n")
		w := tabwriter.NewWriter(a.env.Stdout, 0, 4, 2, ' ', 0)
		for _, c := range m.Components {
			if c.Value == 0 && len(c.Findings) == 0 {
				continue
			}
			row(w, "  "+c.Name, c.Value, c.Status, c.Meaning)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, c := range m.Components {
			a.printReasons(c)
		}
	}
	return nil
}

func (a *app) printReasons(c explain.Component) {
	if c.Value == 0 && len(c.Findings) == 0 {
		return
	}
	for _, l := range c.SetBy {
		a.printf("  %s %d: set by %s  %s\n", c.Name, c.Value, clean(l.Place), clean(l.Text))
	}
	for _, f := range c.Findings {
		place := ""
		if f.Line != "" {
			place = " (" + f.Line + ")"
		}
		a.printf("    because of %s%s: %s: expected %s, got %s\n", clean(f.Rule), clean(place), clean(f.Claim), clean(f.Expected), clean(f.Got))
		if f.Help != "" {
			a.printf("      to change it: %s\n", clean(f.Help))
		}
	}
	for _, l := range c.Otherwise {
		a.printf("    another value: %s  %s\n", clean(l.Place), clean(l.Text))
	}
}
