package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Load reads a file. Relative paths in it are relative to its directory.
func Load(path string) (Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	if info.Size() > maxFile {
		return Config{}, fmt.Errorf("configuration %s: expected at most %d bytes, got %d", path, maxFile, info.Size())
	}
	data, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c, err := Parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	c.resolve(dir)
	return c, nil
}

// Parse reads TOML over the defaults and validates the outcome.
func Parse(data []byte) (Config, error) {
	if len(data) > maxFile {
		return Config{}, fmt.Errorf("expected at most %d bytes, got %d", maxFile, len(data))
	}
	c := Default()
	meta, err := toml.NewDecoder(bytes.NewReader(data)).Decode(&c)
	if err != nil {
		if e, ok := errors.AsType[toml.ParseError](err); ok {
			return Config{}, fmt.Errorf("line %d: %s", e.Position.Line, strings.TrimSpace(e.Message+" "+e.LastKey))
		}
		return Config{}, err
	}
	var errs []error
	for _, key := range meta.Undecoded() {
		errs = append(errs, fmt.Errorf("%s: unknown key (docs/trustee-configuration.md lists all)", key))
	}
	errs = append(errs, spelling(meta.Keys())...)
	errs = append(errs, c.problems()...)
	return c, errors.Join(errs...)
}

// spelling refuses keys in another letter case. The TOML library takes them,
// and of two spellings of one key, which TOML counts as two, either.
func spelling(keys []toml.Key) []error {
	// Tables whose keys are names of the operator's or of AMD's.
	free := []string{"attestation.selectors", "tee.snp.minimum_tcb", "admin.oidc.roles", "plugins.pki.roles", "reference_values.signer.rename"}
	var errs []error
	for _, key := range keys {
		for i, part := range key {
			if part != strings.ToLower(part) && !slices.Contains(free, key[:i].String()) {
				errs = append(errs, fmt.Errorf("%s: expected the key in lower case, got %q", key, part))
			}
		}
	}
	return errs
}

// resolve makes every path of a file absolute.
func (c *Config) resolve(dir string) {
	paths := []*string{
		&c.StateDir, &c.TLS.Certificate, &c.TLS.PrivateKey, &c.TLS.Root, &c.Admin.ClientCA, &c.Tracing.HeadersFile,
		&c.Storage.KEK.File, &c.Storage.KEK.PKCS11.Module, &c.Storage.KEK.PKCS11.PINFile, &c.Storage.KEK.Transit.Roots, &c.Storage.KEK.Transit.TokenFile, &c.Storage.KEK.Transit.SecretIDFile,
		&c.Storage.Database.URLFile, &c.Resources.Directory, &c.Resources.Vault.Roots, &c.Resources.Vault.TokenFile, &c.Resources.Vault.SecretIDFile,
		&c.Resources.PKCS11.Module, &c.Resources.PKCS11.PINFile,
	}
	paths = append(paths, c.teePaths()...)
	for _, list := range [][]string{c.Admin.PublicKeys, c.Plugins.Keyless.Authorities, c.Plugins.Keyless.Logs} {
		for i := range list {
			paths = append(paths, &list[i])
		}
	}
	for i := range c.Admin.Keys {
		paths = append(paths, &c.Admin.Keys[i].File)
	}
	for i := range c.Admin.OIDC {
		paths = append(paths, fileOrURL(&c.Admin.OIDC[i].JWKS), &c.Admin.OIDC[i].Roots)
	}
	for i := range c.Token.Trusted {
		paths = append(paths, fileOrURL(&c.Token.Trusted[i].JWKS), &c.Token.Trusted[i].Certificates)
	}
	for i := range c.References.Signers {
		paths = append(paths, &c.References.Signers[i].Roots)
		for j := range c.References.Signers[i].Keys {
			paths = append(paths, &c.References.Signers[i].Keys[j])
		}
	}
	for i := range c.Webhooks {
		paths = append(paths, &c.Webhooks[i].SecretFile, &c.Webhooks[i].Roots)
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// fileOrURL leaves URLs out.
func fileOrURL(s *string) *string {
	if strings.Contains(*s, "://") {
		return new(string)
	}
	return s
}
