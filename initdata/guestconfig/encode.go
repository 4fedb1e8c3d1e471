package guestconfig

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/boundedtoml"
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
	for _, r := range i.Registries {
		b.WriteString("\n[[image.registry_config.registry]]\n")
		entry(b, "location", r.Location)
		if r.Insecure {
			b.WriteString("insecure = true\n")
		}
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
	if len(c.Image.Registries) == 0 {
		c.Image.Registries = nil
	}
	return c
}
