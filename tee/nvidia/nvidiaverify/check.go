package nvidiaverify

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/tee/nvidia/rim"
)

// CheckRIM says whether body is a manifest that NVIDIA, or one of the
// development roots, signed, and whose version is that of the id: for those who
// keep manifests, so that they keep no other. Dates are not judged, nor is the
// product, which the verifier compares with the evidence.
func CheckRIM(id string, body []byte, development ...DevelopmentRoot) error {
	devices, manifests, err := loadRoots(development)
	if err != nil {
		return err
	}
	v := &verifier{rimRoots: manifests}
	m, err := rim.Verify(body, func(certs []*x509.Certificate) error {
		latest := certs[0].NotBefore
		for _, c := range certs {
			if c.NotBefore.After(latest) {
				latest = c.NotBefore
			}
		}
		var all error
		for _, r := range devices {
			err := v.trustManifest(certs, r, latest)
			if err == nil {
				return nil
			}
			all = errors.Join(all, err)
		}
		return all
	})
	if err != nil {
		return err
	}
	// Firmware's version is without dots in the id, a driver's is not
	// (NVIDIA/nvtrust, guest_tools/gpu_verifiers).
	plain := strings.NewReplacer(".", "", "-", "")
	if want := plain.Replace(id[strings.LastIndexByte(id, '_')+1:]); !strings.EqualFold(want, plain.Replace(m.Version)) {
		return fmt.Errorf("version: expected that of %s, got %.64q", id, m.Version)
	}
	return nil
}
