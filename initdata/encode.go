package initdata

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/boundedtoml"
)

// Encode writes the document as TOML. Equal documents give equal bytes: keys
// are sorted, and texts are written as multi-line literals where their
// content allows it, so that people can read them.
func (d *Document) Encode() ([]byte, error) {
	if errs := d.problems(); len(errs) > 0 {
		return nil, join(errs)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version = %s\nalgorithm = %s\n\n[data]\n", boundedtoml.Quote(d.Version), boundedtoml.Quote(d.Algorithm))
	for _, k := range slices.Sorted(maps.Keys(d.Data)) {
		v := d.Data[k]
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, fmt.Errorf("initdata: data: entry %q is not valid UTF-8", k)
		}
		b.WriteString(boundedtoml.Quote(k) + " = " + boundedtoml.Text(v) + "\n")
	}
	if b.Len() > MaxBytes {
		return nil, fmt.Errorf("initdata: document has %d bytes, the limit is %d", b.Len(), MaxBytes)
	}
	return []byte(b.String()), nil
}
