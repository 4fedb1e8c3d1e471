package azure

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee/internal/numbers"
)

// decoder reads the three encodings of byte strings and collects what is wrong.
type decoder struct{ err error }

func (d *decoder) fail(field, format string, args ...any) {
	d.err = errors.Join(d.err, fmt.Errorf("azure: evidence: %s: "+format, append([]any{field}, args...)...))
}

// document decodes JSON into the form that v points at.
func (d *decoder) document(data []byte, v any) bool {
	if err := strictjson.Decode(data, v, strictjson.Limits{Bytes: MaxEvidence, Depth: maxEvidenceDepth}); err != nil {
		d.err = fmt.Errorf("azure: evidence: %w", err)
	}
	return d.err == nil
}

// base64 reads 1 to limit bytes in the URL-safe alphabet with padding.
func (d *decoder) base64(field, s string, limit int) []byte {
	enc := base64.URLEncoding.Strict()
	if len(s) == 0 || len(s) > enc.EncodedLen(limit) {
		d.fail(field, "expected base64 of 1 to %d bytes, got %d characters", limit, len(s))
		return nil
	}
	out, err := enc.DecodeString(s)
	switch {
	case err != nil:
		d.fail(field, "expected URL-safe base64 with padding: %v", err)
	case enc.EncodedLen(len(out)) != len(s): // Go's decoder skips line ends
		d.fail(field, "expected base64 without line ends")
	case len(out) > limit:
		d.fail(field, "expected at most %d bytes, got %d", limit, len(out))
	default:
		return out
	}
	return nil
}

// hex reads 1 to limit bytes in lower-case hex.
func (d *decoder) hex(field, s string, limit int) []byte {
	if len(s) == 0 || len(s) > hex.EncodedLen(limit) {
		d.fail(field, "expected hex of 1 to %d bytes, got %d characters", limit, len(s))
		return nil
	}
	out, err := hex.DecodeString(s)
	if err != nil || strings.ContainsAny(s, "ABCDEF") {
		d.fail(field, "expected lower-case hex digits")
		return nil
	}
	return out
}

// numbers reads 1 to limit bytes from an array of numbers, which is known to be
// valid JSON.
func (d *decoder) numbers(field string, array json.RawMessage, limit int) []byte {
	out, err := numbers.Parse(array, limit)
	switch {
	case err != nil:
		d.fail(field, "%v", err)
	case len(out) == 0:
		d.fail(field, "expected 1 to %d numbers, got none", limit)
	default:
		return out
	}
	return nil
}
