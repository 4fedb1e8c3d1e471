// Package guestconfig reads and writes the two configuration files that
// initdata carries for the guest: aa.toml (attestation agent) and cdh.toml
// (confidential data hub), as the guest components of Confidential Containers
// define them.
//
// Coffer's guest honours a part of those files. A key it knows but does not
// honour is an error that says so, unless its value is the one that changes
// nothing; an unknown key is an error. A configuration that was measured must
// not be half in force.
package guestconfig

import (
	"errors"

	"github.com/coffer-project/coffer/initdata"
)

// Config is what both files together say.
type Config struct {
	// URL is the key broker's base ("https://trustee.example:8080"), "" when
	// neither file names one.
	URL string
	// RootPEM pins the broker's certificates; "" leaves them to the system's
	// roots.
	RootPEM string
	Image   Image
}

// Image is the [image] table of cdh.toml.
type Image struct {
	// SecurityPolicy is a containers-policy.json document, SecurityPolicyURI
	// a kbs:/// resource that holds one. At most one is set.
	SecurityPolicy    string
	SecurityPolicyURI string
	// CredentialsURI is a kbs:/// resource that holds a docker auth.json.
	CredentialsURI string
	// ExtraRoots are PEM certificates to trust for registries besides the
	// system's.
	ExtraRoots []string
	// Registries are exceptions for registries or parts of them.
	Registries []Registry
	// MaxConcurrentDownloads bounds parallel layer downloads of one image;
	// 0: the default.
	MaxConcurrentDownloads int
}

// Registry is one [[image.registry_config.registry]] entry.
type Registry struct {
	// Location is host[:port][/path].
	Location string
	// Insecure allows plain HTTP.
	Insecure bool
}

// FromDocument reads both files of a document, of which either may be absent.
func FromDocument(d *initdata.Document) (*Config, error) { return nil, errors.New("not yet") }

// TOML writes the configuration as aa.toml and cdh.toml. Equal configurations
// give equal texts.
func (c Config) TOML() (aa, cdh string, err error) { return "", "", errors.New("not yet") }
