package keyprovider

import (
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci/crypt"
)

// params are what stands behind "provider:attestation-agent:" on the command
// line of an encrypting program.
type params struct {
	sample           bool
	keyPath, keyID   string // keyID is normal, or empty
	algorithm        string // crypt.WrapGCM or crypt.WrapCTR
	hasID, hasKeyArg bool
}

const maxParams = 4 << 10

// parseParams reads pairs NAME=VALUE with "::" between them. Unlike
// coco_keyprovider it refuses names that it does not know, and honours
// algorithm.
func parseParams(s string) (params, error) {
	p := params{algorithm: crypt.WrapGCM}
	if len(s) > maxParams {
		return p, fmt.Errorf("parameters: expected at most %d bytes, got %d", maxParams, len(s))
	}
	seen := map[string]bool{}
	for pair := range strings.SplitSeq(s, "::") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || value == "" {
			return p, fmt.Errorf("parameters: expected NAME=VALUE pairs with :: between them, got %.64q", pair)
		}
		if seen[name] {
			return p, fmt.Errorf("parameters: %.32q occurs twice", name)
		}
		seen[name] = true
		if err := p.set(name, value); err != nil {
			return p, err
		}
	}
	if p.sample && len(seen) > 1 {
		return p, errors.New("parameters: sample=true: expected nothing besides")
	}
	return p, nil
}

func (p *params) set(name, value string) error {
	switch name {
	case "sample":
		if value != "true" && value != "false" {
			return fmt.Errorf("parameters: sample: expected true or false, got %.32q", value)
		}
		p.sample = value == "true"
	case "keypath":
		p.keyPath, p.hasKeyArg = value, true
	case "keyid":
		id, err := normalID(value)
		if err != nil {
			return fmt.Errorf("parameters: keyid: %w", err)
		}
		p.keyID, p.hasID = id, true
	case "algorithm":
		if value != crypt.WrapGCM && value != crypt.WrapCTR {
			return fmt.Errorf("parameters: algorithm: expected %s or %s, got %.32q", crypt.WrapGCM, crypt.WrapCTR, value)
		}
		p.algorithm = value
	default:
		return fmt.Errorf("parameters: expected sample, keypath, keyid or algorithm, got %.32q", name)
	}
	return nil
}

// normalID makes kbs://[HOST]/REPOSITORY/TYPE/TAG of the forms that
// coco_keyprovider takes: that, the same without kbs://, and without the host.
func normalID(id string) (string, error) {
	if !strings.HasPrefix(id, "kbs://") {
		if strings.Contains(id, "://") {
			return "", fmt.Errorf("expected kbs:///REPOSITORY/TYPE/TAG, got %.128q", id)
		}
		if strings.Count(strings.TrimPrefix(id, "/"), "/") == 2 {
			id = "/" + strings.TrimPrefix(id, "/")
		}
		id = "kbs://" + id
	}
	uri, err := kbs.ParseResourceURI(id)
	if err != nil {
		return "", err
	}
	if uri.Plugin() != "" && uri.Plugin() != "resource" || len(uri.Segments()) != 3 || uri.Query() != "" {
		return "", fmt.Errorf("expected kbs:///REPOSITORY/TYPE/TAG, got %s", uri)
	}
	return uri.String(), nil
}
