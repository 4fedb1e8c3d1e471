// Package guestconfig reads and writes the configuration files that initdata
// carries for the guest: aa.toml (attestation agent) and cdh.toml
// (confidential data hub), as the guest components of Confidential Containers
// define them, and coffer.toml, which says what those have no words for:
// further trustees, how long resources are kept, and what the REST API offers.
//
// Coffer's guest honours a part of those files. A key it knows but does not
// honour is an error that says so, unless its value is the one that changes
// nothing; an unknown key is an error. A configuration that was measured must
// not be half in force.
package guestconfig

import (
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/oci/registry"
)

// Config is what the files together say.
type Config struct {
	// URL is the key broker's base ("https://trustee.example:8080"), "" when
	// neither file names one.
	URL string
	// RootPEM pins the broker's certificates; "" leaves them to the system's
	// roots.
	RootPEM string
	// KeyType is the kind of key that resources are encrypted to, "" for the
	// default, and PolicySelector the attestation policy to ask for. Both hold
	// for every trustee.
	KeyType        kbs.KeyType
	PolicySelector string
	// ServiceURL is the attestation service that gives tokens of the kind
	// coco_as, "" for none.
	ServiceURL string
	// Trustees are further key brokers, by name.
	Trustees []Trustee
	// Credentials are for key management services.
	Credentials []Credential
	Resources   Resources
	REST        Features
	EventLog    EventLog
	Image       Image
}

// EventLog is the [eventlog_config] table of aa.toml: whether what happens at run
// time is measured. PCR is the register that is extended on a TPM; 0 leaves it to
// the guest's default.
type EventLog struct {
	Enabled bool
	PCR     int
}

// CheckTrustee refuses a resource URI that names a trustee which the
// configuration does not declare.
func (c Config) CheckTrustee(uri kbs.ResourceURI) error {
	name := uri.Trustee()
	if name == "" {
		return nil
	}
	var names []string
	for _, t := range c.Trustees {
		if t.Name == name {
			return nil
		}
		names = append(names, t.Name)
	}
	if len(names) == 0 {
		return fmt.Errorf("%s: there is no trustee %q: coffer.toml declares none; without a name the URI means the default one", uri, name)
	}
	return fmt.Errorf("%s: there is no trustee %q: coffer.toml declares %s; without a name the URI means the default one", uri, name, strings.Join(names, ", "))
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
	// SigstoreConfig is a lookaside configuration in YAML (registries.d),
	// SigstoreConfigURI a kbs:/// resource that holds one. At most one is set.
	SigstoreConfig    string
	SigstoreConfigURI string
	// HostRoots are PEM certificates for single registries, HOST[:PORT]: there,
	// nothing else is trusted. They are the [[registry]] tables of coffer.toml.
	HostRoots map[string]string
	// Registries are mirrors, insecure and blocked registries; RegistriesURI is
	// a kbs:/// resource with the same as a document of its own, to be read
	// with [ParseRegistries]. At most one is set.
	Registries    *registries.Config
	RegistriesURI string
	// Proxy is how registries are reached; the trustee is not.
	Proxy registry.Proxy
	// MaxConcurrentDownloads bounds parallel layer downloads of one image;
	// 0: the default.
	MaxConcurrentDownloads int
}

// FromDocument reads the files of a document, of which any may be absent.
// Where both aa.toml and cdh.toml name the broker they must agree: Coffer has one client for
// tokens and resources. All problems are reported, each with its file and
// key.
func FromDocument(d *initdata.Document) (*Config, error) {
	c := &Config{}
	r := &reader{}
	var aa, cdh broker
	if text, ok := d.Data[initdata.KeyAA]; ok {
		aa = parseAA(r.file(initdata.KeyAA, text), c)
	}
	if text, ok := d.Data[initdata.KeyCDH]; ok {
		cdh = parseCDH(r.file(initdata.KeyCDH, text), c)
	}
	if text, ok := d.Data[initdata.KeyCoffer]; ok {
		parseCoffer(r.file(initdata.KeyCoffer, text), c)
	}
	r.checkNames(c.Trustees)
	switch {
	case aa.url != "" && cdh.url != "" && aa.url != cdh.url:
		r.fail(initdata.KeyCDH+": kbc.url", "expected %.256q as in %s, got %.256q: the guest has one key broker", aa.url, initdata.KeyAA, cdh.url)
	case aa.cert != "" && cdh.cert != "" && aa.cert != cdh.cert:
		r.fail(initdata.KeyCDH+": kbc.kbs_cert", "differs from token_configs.kbs.cert in %s: the guest has one key broker", initdata.KeyAA)
	}
	c.URL, c.RootPEM = aa.url, aa.cert
	if c.URL == "" {
		c.URL = cdh.url
	}
	if c.RootPEM == "" {
		// If one of the files pins the broker, it is pinned for both.
		c.RootPEM = cdh.cert
	}
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return c, nil
}

// broker is how one file names the key broker.
type broker struct{ url, cert string }

// maxProblems bounds an error report.
const maxProblems = 32

// reader collects problems, and the URIs whose trustee must be declared.
type reader struct {
	errs []error
	uris []namedURI
}

// namedURI is a resource URI and the key that holds it.
type namedURI struct {
	where string
	uri   kbs.ResourceURI
}

// fail adds a problem, up to maxProblems of them.
func (r *reader) fail(where, format string, args ...any) {
	switch n := len(r.errs); {
	case n < maxProblems:
		r.errs = append(r.errs, fmt.Errorf("initdata: %s: %s", where, fmt.Sprintf(format, args...)))
	case n == maxProblems:
		r.errs = append(r.errs, errors.New("initdata: and more problems"))
	}
}

// add adds the problems that another package found; they name their keys.
func (r *reader) add(err error) {
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		list = joined.Unwrap()
	}
	for _, e := range list {
		if len(r.errs) <= maxProblems {
			r.errs = append(r.errs, fmt.Errorf("initdata: %w", e))
		}
	}
}

// trimPEM makes certificates that differ only in the white space around them
// equal, with one newline at the end.
func trimPEM(s string) string {
	if s = strings.TrimSpace(s); s == "" {
		return ""
	}
	return s + "\n"
}
