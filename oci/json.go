package oci

import (
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// parseObject checks the whole document (one value, UTF-8, no name twice,
// depth and size) and splits its outermost object.
func parseObject(data []byte) (object, error) {
	var o object
	if err := strictjson.Decode(data, &o, strictjson.Limits{Bytes: MaxDocument, Depth: maxDepth}); err != nil {
		return nil, err
	}
	if o == nil {
		return nil, errors.New("expected a JSON object, got null")
	}
	return o, nil
}

// get decodes the field into to, a pointer to something without JSON objects
// other than maps; a field that is absent or null leaves *to as it is, as many
// encoders write null for an empty list.
func (o object) get(name string, to any) error {
	raw, ok := o[name]
	if !ok || string(raw) == "null" {
		return nil
	}
	if err := strictjson.Decode(raw, to, strictjson.Limits{Bytes: MaxDocument, Depth: maxDepth}); err != nil {
		if e, ok := errors.AsType[*strictjson.Error](err); ok {
			path := name
			if e.Path != "" && e.Path[0] != '[' {
				path += "."
			}
			return fmt.Errorf("%s%s: %s", path, e.Path, e.Problem)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
