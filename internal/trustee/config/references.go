package config

// References configure reference values.
type References struct {
	// Lifetime is the expiry of values that are stored without one; 0: never.
	Lifetime Duration `toml:"lifetime"`
	// Signers may set reference values by what they sign.
	Signers []Signer `toml:"signer"`
	// RIMRoots is a PEM file of the roots of vendors' signed SWID RIMs.
	RIMRoots string `toml:"rim_roots"`
	// Unsigned are the formats that an administrator may register without a
	// signature: sample, corim, swid.
	Unsigned []string `toml:"unsigned"`
}

// Signer is a key whose statements (in-toto in DSSE envelopes, signed CoRIM)
// set reference values.
type Signer struct {
	Name string `toml:"name"`
	// File is the public key or certificate in PEM.
	File string `toml:"file"`
	// Prefixes are of the reference values' names that it may set.
	Prefixes []string `toml:"prefixes"`
	// Tenant is a tenant, or "*" for all.
	Tenant string `toml:"tenant"`
}
