package appraisal

import (
	"encoding/json"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/coffer-project/coffer/initdata"
)

// InitDataClaims are what policies see of initdata: its entries, those that
// are TOML or JSON by name as structures. An entry that does not parse stays a
// string: its meaning is the guest's business.
func InitDataClaims(d *initdata.Document) map[string]any {
	out := make(map[string]any, len(d.Data))
	for name, text := range d.Data {
		out[name] = text
		switch {
		case strings.HasSuffix(name, ".toml"):
			var v map[string]any
			if _, err := toml.Decode(text, &v); err == nil {
				out[name] = v
			}
		case strings.HasSuffix(name, ".json"):
			if json.Valid([]byte(text)) {
				out[name] = json.RawMessage(text)
			}
		}
	}
	return out
}
