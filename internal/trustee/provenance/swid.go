package provenance

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/tee/nvidia/rim"
)

// parseSWID reads an NVIDIA reference integrity manifest. Each active
// measurement becomes a list of its alternatives in hex, named
// <manufacturer with _ for spaces>.<edition>.measurement_<index> (§3.2).
func parseSWID(o *Options, data []byte) (*document, error) {
	m, by, err := readManifest(o, data)
	if err != nil {
		return nil, err
	}
	prefix := strings.ReplaceAll(m.Manufacturer, " ", "_") + "." + m.Edition + ".measurement_"
	d := &document{by: by, title: strings.TrimSpace(m.Product + " " + m.Version)}
	if len(m.Certificates) > 0 {
		d.proof = certProof(m.Certificates[0])
	}
	for _, one := range m.Measurements {
		if !one.Active {
			continue
		}
		ref := refvalues.Reference{Name: prefix + strconv.Itoa(one.Index)}
		for _, value := range one.Values {
			v, err := json.Marshal(hex.EncodeToString(value))
			if err != nil {
				return nil, err
			}
			ref.Entries = append(ref.Entries, refvalues.Entry{Value: v, Description: plain(d.title+" "+one.Name, refvalues.MaxDescription)})
		}
		d.refs = append(d.refs, ref)
	}
	return d, nil
}

// readManifest verifies a manifest's signature, where it has one and any signer
// has roots to verify it with. The signer is nil where it was not verified.
func readManifest(o *Options, data []byte) (*rim.Manifest, *Signer, error) {
	if !slices.ContainsFunc(o.Signers, func(s Signer) bool { return len(s.Roots) > 0 }) {
		m, err := rim.Decode(data)
		return m, nil, err
	}
	var by *Signer
	m, err := rim.Verify(data, func(certs []*x509.Certificate) error {
		var err error
		by, err = o.chain(certs)
		return err
	})
	switch {
	case errors.Is(err, rim.ErrUnsigned):
		m, err = rim.Decode(data)
		return m, nil, err
	case errors.Is(err, rim.ErrSignature):
		return nil, nil, fmt.Errorf("%w: %w", err, ErrUntrusted)
	}
	return m, by, err
}
