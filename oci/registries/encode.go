package registries

import (
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/boundedtoml"
)

// TOML writes the document, which [Parse] reads back. Equal configurations give
// equal texts. table, such as "image.registry_config", makes it a table of
// another document; empty writes a document of its own.
func (c *Config) TOML(table string) string {
	if c == nil {
		return ""
	}
	var b strings.Builder
	path := table
	if path != "" {
		path += "."
	}
	if len(c.Search) > 0 {
		if table != "" {
			b.WriteString("[" + table + "]\n")
		}
		b.WriteString("unqualified-search-registries = [")
		for i, s := range c.Search {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(boundedtoml.Quote(s))
		}
		b.WriteString("]\n")
	}
	for _, r := range c.Registries {
		r.write(&b, path+"registry")
	}
	if len(c.Aliases) > 0 {
		header(&b, "["+path+"aliases]")
		for _, name := range slices.Sorted(maps.Keys(c.Aliases)) {
			b.WriteString(boundedtoml.Quote(name) + " = " + boundedtoml.Quote(c.Aliases[name]) + "\n")
		}
	}
	return b.String()
}

func header(b *strings.Builder, text string) {
	if b.Len() > 0 {
		b.WriteByte('\n')
	}
	b.WriteString(text + "\n")
}

func (r Registry) write(b *strings.Builder, path string) {
	header(b, "[["+path+"]]")
	text := func(key, value string) {
		if value != "" {
			b.WriteString(key + " = " + boundedtoml.Quote(value) + "\n")
		}
	}
	flag := func(key string, value bool) {
		if value {
			b.WriteString(key + " = true\n")
		}
	}
	text("prefix", r.Prefix)
	text("location", r.Location)
	flag("insecure", r.Insecure)
	flag("blocked", r.Blocked)
	flag("mirror-by-digest-only", r.MirrorByDigestOnly)
	for _, m := range r.Mirrors {
		header(b, "[["+path+".mirror]]")
		text("location", m.Location)
		flag("insecure", m.Insecure)
		text("pull-from-mirror", m.Pull)
	}
}
