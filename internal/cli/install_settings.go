package cli

// checkSettings judges the configuration of a handler as the shim will.
func checkSettings(_ []byte) error { return nil }
