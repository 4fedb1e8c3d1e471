package guestconfig

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/boundedtoml"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/oci/registry"
)

// TOML writes a configuration that needs no coffer.toml as aa.toml and
// cdh.toml; see [Config.Data].
func (c Config) TOML() (aa, cdh string, err error) {
	data, err := c.Data()
	if err != nil {
		return "", "", err
	}
	if _, ok := data[initdata.KeyCoffer]; ok {
		return "", "", errors.New("initdata: guest configuration: needs " + initdata.KeyCoffer + " besides " + initdata.KeyAA + " and " + initdata.KeyCDH)
	}
	return data[initdata.KeyAA], data[initdata.KeyCDH], nil
}

// Data writes the configuration as entries of initdata: aa.toml, cdh.toml and
// coffer.toml, those that would be empty left out. Equal configurations give
// equal texts. The texts are read back: a configuration that [FromDocument]
// would refuse or change is an error.
func (c Config) Data() (map[string]string, error) {
	if c.RootPEM != "" && c.URL == "" {
		return nil, errors.New("initdata: guest configuration: a root certificate is set, but no URL")
	}
	data := map[string]string{}
	for name, write := range map[string]func(*strings.Builder){
		initdata.KeyAA: c.writeAA, initdata.KeyCDH: c.writeCDH, initdata.KeyCoffer: c.writeCoffer,
	} {
		var b strings.Builder
		write(&b)
		if !utf8.ValidString(b.String()) {
			return nil, errors.New("initdata: guest configuration: a value is not valid UTF-8")
		}
		if b.Len() > 0 {
			data[name] = b.String()
		}
	}
	back, err := FromDocument(&initdata.Document{Data: data})
	if err != nil {
		return nil, fmt.Errorf("guest configuration: %w", err)
	}
	if !reflect.DeepEqual(*back, c.normal()) {
		return nil, errors.New("initdata: guest configuration: a value does not survive being written: use canonical URLs, kbs:/// URIs and PEM")
	}
	return data, nil
}

func (c Config) writeAA(b *strings.Builder) {
	if c.ServiceURL != "" {
		b.WriteString("[token_configs.coco_as]\n")
		entry(b, "url", c.ServiceURL)
	}
	defer c.writeEventLog(b)
	if c.URL == "" && c.KeyType == "" && c.PolicySelector == "" {
		return
	}
	section(b, "[token_configs.kbs]")
	text(b, "url", c.URL)
	text(b, "cert", c.RootPEM)
	text(b, "tee_key_algorithm", string(c.KeyType))
	text(b, "attestation_policy_selector", c.PolicySelector)
}

func (c Config) writeEventLog(b *strings.Builder) {
	if c.EventLog == (EventLog{}) {
		return
	}
	section(b, "[eventlog_config]")
	if c.EventLog.Enabled {
		b.WriteString("enable_eventlog = true\n")
	}
	if c.EventLog.PCR != 0 {
		fmt.Fprintf(b, "init_pcr = %d\n", c.EventLog.PCR)
	}
}

func (c Config) writeCDH(b *strings.Builder) {
	if c.URL != "" {
		b.WriteString("[kbc]\n")
		entry(b, "name", kbcName)
		entry(b, "url", c.URL)
		text(b, "kbs_cert", c.RootPEM)
	}
	for _, x := range c.Credentials {
		section(b, "[[credentials]]")
		entry(b, "resource_uri", x.URI)
		entry(b, "path", x.Path)
	}
	c.Image.write(b)
}

func (c Config) writeCoffer(b *strings.Builder) {
	for _, t := range c.Trustees {
		section(b, "[[trustee]]")
		entry(b, "name", t.Name)
		entry(b, "url", t.URL)
		text(b, "cert", t.RootPEM)
	}
	for _, host := range slices.Sorted(maps.Keys(c.Image.HostRoots)) {
		section(b, "[[registry]]")
		entry(b, "host", host)
		text(b, "cert", c.Image.HostRoots[host])
	}
	if r := c.Resources; r != (Resources{}) {
		section(b, "[resources]")
		if r.Lifetime != nil {
			entry(b, "lifetime", r.Lifetime.String())
		}
		for _, x := range []struct {
			key string
			n   int
		}{{"max_entries", r.MaxEntries}, {"max_bytes", r.MaxBytes}} {
			if x.n != 0 {
				fmt.Fprintf(b, "%s = %d\n", x.key, x.n)
			}
		}
	}
	if c.REST != "" {
		section(b, "[rest_api]")
		entry(b, "features", string(c.REST))
	}
}

// section begins a table, apart from what stands before it.
func section(b *strings.Builder, name string) {
	if b.Len() > 0 {
		b.WriteByte('\n')
	}
	b.WriteString(name + "\n")
}

func (i Image) write(b *strings.Builder) {
	if i.HostRoots = nil; reflect.DeepEqual(i, Image{}) {
		return
	}
	if b.Len() > 0 {
		b.WriteByte('\n')
	}
	b.WriteString("[image]\n")
	text(b, "image_security_policy", i.SecurityPolicy)
	text(b, "image_security_policy_uri", i.SecurityPolicyURI)
	text(b, "authenticated_registry_credentials_uri", i.CredentialsURI)
	if len(i.ExtraRoots) > 0 {
		b.WriteString("extra_root_certificates = [\n")
		for _, s := range i.ExtraRoots {
			b.WriteString(boundedtoml.Text(s) + ",\n")
		}
		b.WriteString("]\n")
	}
	if n := i.MaxConcurrentDownloads; n != 0 {
		fmt.Fprintf(b, "max_concurrent_layer_downloads_per_image = %d\n", n)
	}
	text(b, "sigstore_config", i.SigstoreConfig)
	text(b, "sigstore_config_uri", i.SigstoreConfigURI)
	text(b, "registry_configuration_uri", i.RegistriesURI)
	if i.Proxy != (registry.Proxy{}) {
		b.WriteString("\n[image.image_pull_proxy]\n")
		text(b, "https_proxy", i.Proxy.HTTPS)
		text(b, "http_proxy", i.Proxy.HTTP)
		text(b, "no_proxy", i.Proxy.NoProxy)
	}
	if conf := i.Registries.TOML("image.registry_config"); conf != "" {
		b.WriteString("\n" + conf)
	}
}

// entry writes a key; text does so unless the value is empty.
func entry(b *strings.Builder, key, value string) {
	b.WriteString(key + " = " + boundedtoml.Quote(value) + "\n")
}

func text(b *strings.Builder, key, value string) {
	if value != "" {
		b.WriteString(key + " = " + boundedtoml.Text(value) + "\n")
	}
}

// normal is c as it is read back.
func (c Config) normal() Config {
	c.URL = strings.TrimRight(c.URL, "/")
	c.RootPEM = trimPEM(c.RootPEM)
	roots := c.Image.ExtraRoots
	c.Image.ExtraRoots = nil
	for _, s := range roots {
		c.Image.ExtraRoots = append(c.Image.ExtraRoots, trimPEM(s))
	}
	if c.Image.Registries != nil && reflect.DeepEqual(*c.Image.Registries, registries.Config{}) {
		c.Image.Registries = nil
	}
	hosts := c.Image.HostRoots
	c.Image.HostRoots = nil
	for host, cert := range hosts {
		if c.Image.HostRoots == nil {
			c.Image.HostRoots = map[string]string{}
		}
		c.Image.HostRoots[host] = trimPEM(cert)
	}
	c.ServiceURL = strings.TrimRight(c.ServiceURL, "/")
	if len(c.Credentials) == 0 {
		c.Credentials = nil
	}
	trustees := c.Trustees
	c.Trustees = nil
	for _, t := range trustees {
		c.Trustees = append(c.Trustees, Trustee{t.Name, strings.TrimRight(t.URL, "/"), trimPEM(t.RootPEM)})
	}
	return c
}
