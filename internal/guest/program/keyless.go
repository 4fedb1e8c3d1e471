//go:build keyless

package program

import (
	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/keyless"
)

// keylessOption lets image policies demand keyless signatures.
func keylessOption(agent.RegistryConfig) []signature.Option {
	return []signature.Option{signature.WithKeyless(keyless.New())}
}
