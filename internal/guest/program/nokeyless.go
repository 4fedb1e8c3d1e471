//go:build !keyless

package program

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/remote"
	"github.com/coffer-project/coffer/secret"
)

// keylessOption has keyless signatures verified by the pod's trustee: sigstore's
// library would triple what the guest is made of. A guest that is built with the
// tag keyless has it and asks nobody. Without a trustee there is no option, and
// policies that demand such signatures are refused.
func keylessOption(c agent.RegistryConfig) []signature.Option {
	if c.AskTrustee == nil {
		return nil
	}
	return []signature.Option{signature.WithKeyless(remote.New(func(ctx context.Context, request []byte) (secret.Bytes, error) {
		answer, err := c.AskTrustee(ctx, remote.URI, request)
		if se, ok := errors.AsType[*kbs.StatusError](err); ok && noPlugin(se.Status) {
			err = fmt.Errorf("%w: the trustee does not verify keyless signatures: have its operator turn its plugin keyless on (plugins.keyless.enabled), or use a guest that was built with the tag keyless", err)
		}
		return answer, err
	}))}
}

// noPlugin tells whether this is what a trustee answers that has no such plugin.
// To a trustee, POST is then administration, which a guest's token does not
// open: an attested guest that gets 401 is at the wrong place.
func noPlugin(status int) bool {
	return slices.Contains([]int{http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed}, status)
}
