package appraisal

import (
	"encoding/json"
	"strings"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/policy"
)

// InitDataClaims are what policies see of initdata: its entries, those that
// are TOML or JSON by name as structures. An entry that does not parse, could
// be read in two ways, is nested beyond all use, or has a value that JSON
// lacks or policies cannot handle stays a string: its meaning is the guest's business. Any guest writes
// its own initdata, so the decoders are bounded.
func InitDataClaims(d *initdata.Document) map[string]any {
	out := make(map[string]any, len(d.Data))
	for name, text := range d.Data {
		out[name] = text
		if doc, ok := structure(d, name); ok {
			out[name] = doc
		}
	}
	return out
}

func structure(d *initdata.Document, name string) (json.RawMessage, bool) {
	switch {
	case strings.HasSuffix(name, ".toml"):
		table, err := d.Table(name)
		if err != nil {
			return nil, false
		}
		doc, err := json.Marshal(table) // fails for nan and inf
		return doc, err == nil
	case strings.HasSuffix(name, ".json"):
		doc := json.RawMessage(d.Data[name])
		var checked any // the text itself keeps integers exact
		if strictjson.Decode(doc, &checked, strictjson.Limits{Bytes: initdata.MaxBytes}) != nil {
			return nil, false
		}
		_, err := policy.NewInput(doc) // fails for numbers that policies cannot handle
		return doc, err == nil
	}
	return nil, false
}
