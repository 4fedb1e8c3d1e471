package tee

// Inspection is what evidence says, decoded and not verified: nothing in it may
// be relied on.
type Inspection struct {
	TEE Name `json:"tee"`
	// Format says what was read, for example "attestation report, version 3".
	Format string `json:"format"`
	// Fields are JSON-encodable; byte strings are lower-case hex.
	Fields map[string]any `json:"fields"`
	// Odd are remarks on what a verifier would refuse or a reader should
	// know: reserved bytes that are not zero, bytes left over, a debug bit.
	Odd []string `json:"odd,omitempty"`
}
