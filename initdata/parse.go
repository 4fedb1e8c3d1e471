package initdata

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/coffer-project/coffer/internal/boundedtoml"
)

// Limits of the data table.
const (
	maxEntries  = 64
	maxKeyBytes = 128
	// maxProblems bounds an error report.
	maxProblems = 32
)

// Parse decodes a document strictly: a top-level key it does not know, a
// wrong type, another version or an unknown algorithm is an error that names
// the key. All problems are reported. Entries of the data table that Coffer
// does not know are kept.
func Parse(raw []byte) (*Document, error) {
	top, err := boundedtoml.Decode(raw, MaxBytes)
	if err != nil {
		return nil, fmt.Errorf("initdata: %w", err)
	}
	d := &Document{}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("initdata: "+format, args...)) }
	for _, name := range slices.Sorted(maps.Keys(top)) {
		if name != "version" && name != "algorithm" && name != "data" {
			fail("unknown key %.64q: expected version, algorithm and [data]", name)
		}
	}
	for name, to := range map[string]*string{"version": &d.Version, "algorithm": &d.Algorithm} {
		switch v := top[name].(type) {
		case nil:
			fail("key %q is missing", name)
		case string:
			*to = v
		default:
			fail("key %q: expected a string, got %s", name, kind(v))
		}
	}
	switch v := top["data"].(type) {
	case nil:
		fail("table [data] is missing")
	case map[string]any:
		d.Data = make(map[string]string, len(v))
		for k, v := range v {
			s, ok := v.(string)
			if !ok {
				fail("data: key %.64q: expected a string, got %s", k, kind(v))
			}
			d.Data[k] = s
		}
	default:
		fail("key \"data\": expected a table, got %s", kind(v))
	}
	if len(errs) == 0 {
		errs = d.problems()
	}
	if len(errs) > 0 {
		return nil, join(errs)
	}
	return d, nil
}

// Table decodes the entry of that name as TOML, within bounds of nesting and
// number: an entry is its author's, who may be a stranger. An entry that is
// missing is an error.
func (d *Document) Table(name string) (map[string]any, error) {
	text, ok := d.Data[name]
	if !ok {
		return nil, fmt.Errorf("initdata: data: entry %.64q is missing", name)
	}
	table, err := boundedtoml.Decode([]byte(text), MaxBytes)
	if err != nil {
		return nil, fmt.Errorf("initdata: data: entry %.64q: %w", name, err)
	}
	return table, nil
}

// problems lists what is wrong with the values.
func (d *Document) problems() []error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("initdata: "+format, args...)) }
	if d.Version != Version {
		fail("key \"version\": expected %q, got %.64q", Version, d.Version)
	}
	switch d.Algorithm {
	case SHA256, SHA384, SHA512:
	default:
		fail("key \"algorithm\": expected \"sha256\", \"sha384\" or \"sha512\", got %.64q", d.Algorithm)
	}
	if len(d.Data) > maxEntries {
		fail("data: has %d entries, the limit is %d", len(d.Data), maxEntries)
		return errs
	}
	for k := range d.Data {
		switch {
		case k == "":
			fail("data: a key is empty")
		case len(k) > maxKeyBytes:
			fail("data: key %.32q… has %d bytes, the limit is %d", k, len(k), maxKeyBytes)
		case strings.ContainsFunc(k, unicode.IsControl):
			fail("data: key %q has a control character", k)
		}
	}
	return errs
}

// join makes a report that is independent of map order, and of readable
// length even if the document consists of nothing but mistakes.
func join(errs []error) error {
	slices.SortStableFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if n := len(errs) - maxProblems; n > 0 {
		errs = append(errs[:maxProblems], fmt.Errorf("initdata: and %d more problems", n))
	}
	return errors.Join(errs...)
}

// kind names the type of a TOML value.
func kind(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "an array"
	}
	return "a date or time"
}
