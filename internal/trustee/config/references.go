package config

// References configure reference values.
type References struct {
	// Lifetime is the expiry of values that are stored without one; 0: never.
	Lifetime Duration `toml:"lifetime"`
	// Signers may set reference values by what they sign.
	Signers []Signer `toml:"signer"`
	// Unsigned are the formats that an administrator may register without a
	// signature: sample, corim, swid.
	Unsigned []string `toml:"unsigned"`
}

// Signer is somebody who vouches for reference values by what they sign.
type Signer struct {
	Name string `toml:"name"`
	// Keys are PEM files of public keys: they verify in-toto statements and CoRIM.
	Keys []string `toml:"keys"`
	// Roots is a PEM file of the roots that the certificates in SWID and CoRIM
	// documents end in.
	Roots string `toml:"roots"`
	// Subjects are the common names a signing certificate may have; none: any.
	Subjects []string `toml:"subjects"`
	// AcceptExpired accepts manifests whose signing certificate has expired.
	AcceptExpired bool `toml:"accept_expired"`
	// Builders are the builder ids SLSA provenance may name; none: any.
	Builders []string `toml:"builders"`
	// Prefixes are of the reference values' names that it may set; "*" is all.
	Prefixes []string `toml:"prefixes"`
	// Rename replaces the beginnings of names, before Prefixes are looked at.
	Rename map[string]string `toml:"rename"`
	// Tenant is a tenant, or "*" for all.
	Tenant string `toml:"tenant"`
}
