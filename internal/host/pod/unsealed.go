package pod

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
)

// Bounds of the files that an unsealed pod is told of.
const (
	maxCA   = 1 << 20
	maxFile = 256 << 10
)

// unsealedTrustee is the trustee that a pod without initdata is told of; nil: none.
func unsealedTrustee(t runtimeconfig.Trustee) (*agentapi.UnsealedTrustee, error) {
	if t.URL == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	pem, err := readFile("unsealed_trustee.ca", t.CA, maxCA)
	if err != nil {
		return nil, err
	}
	return &agentapi.UnsealedTrustee{Url: t.URL, CaPem: string(pem)}, nil
}

// unsealedRegistries is how a pod without initdata reaches registries. A node
// without the usual file of authorities has none to tell.
func unsealedRegistries(r runtimeconfig.Registries) (*agentapi.UnsealedRegistries, error) {
	pem, err := readFile("unsealed_registries.ca", r.CA, maxCA)
	if errors.Is(err, fs.ErrNotExist) && r.CA == runtimeconfig.DefaultAuthorities {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	config, err := readFile("unsealed_registries.config", r.Config, maxFile)
	if err != nil {
		return nil, err
	}
	auth, err := readFile("unsealed_registries.auth", r.Auth, maxFile)
	if err != nil {
		return nil, err
	}
	return &agentapi.UnsealedRegistries{CaPem: string(pem), RegistriesConf: string(config), AuthJson: auth}, nil
}

// readFile reads the file that a key of the configuration names; no path is an
// empty file.
func readFile(key, path string, limit int64) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("expected at most %d bytes, got more", limit)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", key, path, err)
	}
	return data, nil
}
