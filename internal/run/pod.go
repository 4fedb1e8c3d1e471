package run

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/secret/sealed"
)

// InitdataOptions are what a pod's initdata is made of.
type InitdataOptions struct {
	// Policy is the pod policy document.
	Policy []byte
	// TrusteeURL as the guest reaches it, and the PEM that vouches for it.
	TrusteeURL string
	TrusteeCA  []byte
	// ImagePolicy is a containers-policy.json, or the kbs:/// URI of one;
	// empty accepts unsigned images (the policy pins their digests).
	ImagePolicy string
	// Credentials is the kbs:/// URI of a docker auth.json.
	Credentials string
	// RegistryRoots are PEM certificates the guest trusts for registries.
	RegistryRoots []string
	// HostRoots are the PEM certificates for single registries, host[:port].
	HostRoots map[string]string
	// PlainHTTP lists registries the guest may ask without TLS.
	PlainHTTP []string
	// Registries is a registry configuration for the guest; nil for none.
	Registries *registries.Config
	GuestServices
	// Proxy is how the guest reaches registries.
	Proxy registry.Proxy
	// SigstoreConfig is a registries.d document for the guest, or the kbs:///
	// URI of one: where signatures lie that no registry has.
	SigstoreConfig string
}

// GuestServices are what the guest does besides running the containers.
type GuestServices struct {
	// Trustees are further ones, which URIs name: kbs://NAME/….
	Trustees []guestconfig.Trustee
	// REST is which groups of the REST API the containers may use; empty leaves
	// it to the guest.
	REST guestconfig.Features
	// EventLog has what happens in the guest measured: images, containers,
	// commands.
	EventLog bool
}

// Initdata is a document with its digest.
type Initdata struct {
	Raw       []byte
	Algorithm string
	Digest    []byte
}

// NewInitdata writes the document. Equal options give equal bytes.
func NewInitdata(o InitdataOptions) (*Initdata, error) {
	if _, err := podpolicy.Parse(o.Policy); err != nil {
		return nil, err
	}
	config := guestconfig.Config{URL: o.TrusteeURL, RootPEM: string(o.TrusteeCA), Trustees: o.Trustees, REST: o.REST}
	config.EventLog.Enabled = o.EventLog
	config.Image.CredentialsURI = o.Credentials
	config.Image.ExtraRoots = o.RegistryRoots
	for host, cert := range o.HostRoots {
		if config.Image.HostRoots == nil {
			config.Image.HostRoots = map[string]string{}
		}
		config.Image.HostRoots[guestLocation(host)] = cert
	}
	config.Image.Registries = o.guestRegistries()
	config.Image.Proxy = o.Proxy
	if strings.HasPrefix(o.SigstoreConfig, "kbs:///") {
		config.Image.SigstoreConfigURI = o.SigstoreConfig
	} else {
		config.Image.SigstoreConfig = o.SigstoreConfig
	}
	switch {
	case strings.HasPrefix(o.ImagePolicy, "kbs:///"):
		config.Image.SecurityPolicyURI = o.ImagePolicy
	case o.ImagePolicy != "":
		if !json.Valid([]byte(o.ImagePolicy)) {
			return nil, errors.New("image policy: expected a containers-policy.json document or a kbs:/// URI")
		}
		config.Image.SecurityPolicy = o.ImagePolicy
	}
	data, err := config.Data()
	if err != nil {
		return nil, fmt.Errorf("initdata: %w", err)
	}
	data[initdata.KeyPodPolicy] = string(o.Policy)
	doc := initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: data}
	raw, err := doc.Encode()
	if err != nil {
		return nil, fmt.Errorf("initdata: %w", err)
	}
	return OpenInitdata(raw)
}

// guestRegistries is the configuration without short names, which the guest is
// not to see, and with the registries to be asked by plain HTTP that it does not
// have.
func (o InitdataOptions) guestRegistries() *registries.Config {
	c := &registries.Config{}
	have := map[string]bool{}
	if o.Registries != nil {
		c.Registries = slices.Clone(o.Registries.Registries)
	}
	for i := range c.Registries {
		r := &c.Registries[i]
		r.Prefix, r.Location = guestLocation(r.Prefix), guestLocation(r.Location)
		r.Mirrors = slices.Clone(r.Mirrors)
		for j := range r.Mirrors {
			r.Mirrors[j].Location = guestLocation(r.Mirrors[j].Location)
		}
		r.Insecure = r.Insecure || slices.Contains(o.PlainHTTP, r.Location)
		have[r.Location] = true
	}
	for _, location := range o.PlainHTTP {
		if !have[location] {
			c.Registries = append(c.Registries, registries.Registry{Location: location, Insecure: true})
		}
	}
	if len(c.Registries) == 0 {
		return nil
	}
	return c
}

// guestLocation is a location as the guest reaches it: what is on this machine's
// loopback is at its host.
func guestLocation(s string) string {
	host, path, hasPath := strings.Cut(s, "/")
	if guest, ok := guestRegistry(host); ok {
		host = guest
	}
	if hasPath {
		return host + "/" + path
	}
	return host
}

// OpenInitdata reads a document and computes its digest.
func OpenInitdata(raw []byte) (*Initdata, error) {
	alg, digest, err := initdata.Digest(raw)
	if err != nil {
		return nil, err
	}
	return &Initdata{Raw: raw, Algorithm: alg, Digest: digest}, nil
}

// Resources lists the KBS resources a pod needs: what its policy and its
// initdata name, and the keys of its images' layers.
func Resources(policy *podpolicy.Policy, o InitdataOptions, layerKeys []string) ([]kbs.ResourceURI, error) {
	names := slices.Clone(layerKeys)
	for _, c := range policy.Containers {
		for _, v := range c.Env {
			if v.Resource != "" {
				names = append(names, v.Resource)
			}
			names = append(names, sealedNames(v.Sealed)...)
		}
	}
	for _, v := range policy.Volumes {
		if v.Key != "" {
			names = append(names, v.Key)
		}
		names = slices.AppendSeq(names, maps.Values(v.Resources))
		for _, text := range v.Sealed {
			names = append(names, sealedNames(text)...)
		}
	}
	if o.Credentials != "" {
		names = append(names, o.Credentials)
	}
	for _, uri := range []string{o.ImagePolicy, o.SigstoreConfig} {
		if strings.HasPrefix(uri, "kbs:///") {
			names = append(names, uri)
		}
	}
	for _, field := range strings.FieldsFunc(o.ImagePolicy, func(r rune) bool { return r == '"' }) {
		if strings.HasPrefix(field, "kbs:///") {
			names = append(names, field)
		}
	}
	slices.Sort(names)
	var uris []kbs.ResourceURI
	for _, n := range slices.Compact(names) {
		uri, err := kbs.ParseResourceURI(n)
		if err != nil {
			return nil, err
		}
		uris = append(uris, uri)
	}
	return uris, nil
}

// sealedNames are the KBS resources that a sealed secret needs: the key that
// its header names for checking it, and the one that a vault stands for or that
// an envelope's key is wrapped with. What is not understood is left to the guest, which refuses it by name.
func sealedNames(text string) []string {
	parts := strings.Split(strings.TrimPrefix(text, "sealed."), ".")
	if len(parts) != 3 {
		return nil
	}
	var header struct {
		KID string `json:"kid"`
	}
	var payload struct {
		Type     sealed.Type `json:"type"`
		Provider string      `json:"provider"`
		Name     string      `json:"name"`
		KeyID    string      `json:"key_id"`
	}
	for i, v := range []any{&header, &payload} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(raw, v) != nil {
			return nil
		}
	}
	needed := []string{header.KID}
	if payload.Provider == sealed.KBS {
		switch payload.Type {
		case sealed.Vault:
			needed = append(needed, payload.Name)
		case sealed.Envelope:
			needed = append(needed, payload.KeyID)
		}
	}
	return slices.DeleteFunc(needed, func(name string) bool {
		_, err := kbs.ParseResourceURI(name)
		return err != nil || !strings.HasPrefix(name, "kbs://")
	})
}
