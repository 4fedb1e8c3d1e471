//go:build kata_policy

package katapolicy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/open-policy-agent/opa/v1/ast"
)

// operation is one of a JSON patch (RFC 6902).
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	From  string `json:"from"`
	Value any    `json:"value"`
}

// verdict reads a rule's value: a boolean, or an object with allowed and ops.
func verdict(v ast.Value) (allowed bool, ops []operation, err error) {
	switch v := v.(type) {
	case nil:
		return false, nil, nil
	case ast.Boolean:
		return bool(v), nil, nil
	case ast.Object:
		plain, err := ast.JSON(v)
		if err != nil {
			return false, nil, err
		}
		data, err := json.Marshal(plain)
		if err != nil {
			return false, nil, err
		}
		var response struct {
			Allowed *bool       `json:"allowed"`
			Ops     []operation `json:"ops"`
		}
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber()
		if err := d.Decode(&response); err != nil {
			return false, nil, fmt.Errorf("expected an object with allowed and ops: %w", err)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) || response.Allowed == nil {
			return false, nil, errors.New("expected an object with allowed")
		}
		return *response.Allowed, response.Ops, nil
	}
	return false, nil, fmt.Errorf("expected a boolean or an object, got %s", ast.ValueName(v))
}
