package program

import (
	"github.com/coffer-project/coffer/internal/guest/kms"
	"github.com/coffer-project/coffer/internal/guest/kms/awskms"
)

// providers are the key management services that sealed secrets may name, by the
// name they call them. More come with build tags: see withAliyun.
func providers() map[string]kms.Provider {
	all := map[string]kms.Provider{"aws": awskms.New(awskms.Options{})}
	withAliyun(all)
	return all
}
