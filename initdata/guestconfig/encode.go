package guestconfig

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/boundedtoml"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/oci/registry"
)

// TOML writes the configuration as aa.toml and cdh.toml. Equal configurations
// give equal texts. The texts are read back: a configuration that
// [FromDocument] would refuse or change is an error.
func (c Config) TOML() (aa, cdh string, err error) {
	if c.RootPEM != "" && c.URL == "" {
		return "", "", errors.New("initdata: guest configuration: a root certificate is set, but no URL")
	}
	var a, h strings.Builder
	if c.URL != "" {
		a.WriteString("[token_configs.kbs]\n")
		entry(&a, "url", c.URL)
		text(&a, "cert", c.RootPEM)
		h.WriteString("[kbc]\n")
		entry(&h, "name", kbcName)
		entry(&h, "url", c.URL)
		text(&h, "kbs_cert", c.RootPEM)
	}
	c.Image.write(&h)
	aa, cdh = a.String(), h.String()
	if !utf8.ValidString(aa) || !utf8.ValidString(cdh) {
		return "", "", errors.New("initdata: guest configuration: a value is not valid UTF-8")
	}
	back, err := FromDocument(&initdata.Document{Data: map[string]string{initdata.KeyAA: aa, initdata.KeyCDH: cdh}})
	if err != nil {
		return "", "", fmt.Errorf("guest configuration: %w", err)
	}
	if !reflect.DeepEqual(*back, c.normal()) {
		return "", "", errors.New("initdata: guest configuration: a value does not survive being written: use canonical URLs, kbs:/// URIs and PEM")
	}
	return aa, cdh, nil
}

func (i Image) write(b *strings.Builder) {
	if reflect.DeepEqual(i, Image{}) {
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
	return c
}
