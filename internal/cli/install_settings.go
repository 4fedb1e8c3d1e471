package cli

import "github.com/coffer-project/coffer/internal/host/runtimeconfig"

// checkSettings judges the configuration of a handler as the shim will.
func checkSettings(text []byte) error {
	_, err := runtimeconfig.Parse(text)
	return err
}
