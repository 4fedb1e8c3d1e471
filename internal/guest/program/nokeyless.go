//go:build !keyless

package program

import "github.com/coffer-project/coffer/oci/signature"

// keylessOption is empty: sigstore's library would triple what the guest is made
// of. A guest that is built with the tag keyless has it.
func keylessOption() []signature.Option { return nil }
