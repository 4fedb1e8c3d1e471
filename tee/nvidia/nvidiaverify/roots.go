package nvidiaverify

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	_ "embed" // the roots
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/tee/internal/pemchain"
)

// NVIDIA's roots, as NVIDIA publishes them with its verifiers
// (NVIDIA/nvtrust@0281730, guest_tools/gpu_verifiers/local_gpu_verifier/src/verifier/certs):
// "NVIDIA Device Identity CA" of devices and "NVIDIA CoRIM signing Root CA" of
// manifests. The digests pin them independently of the files.
var (
	//go:embed roots/device.pem
	deviceRoot []byte
	//go:embed roots/rim.pem
	rimRoot []byte
)

const (
	deviceRootSHA256 = "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"
	rimRootSHA256    = "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1"
)

// root is an anchor.
type root struct {
	cert *x509.Certificate
	// development is the configured name, empty for NVIDIA's.
	development string
}

func loadRoots(development []DevelopmentRoot) (devices, manifests []root, err error) {
	for _, r := range []struct {
		pem    []byte
		digest string
		to     *[]root
	}{{deviceRoot, deviceRootSHA256, &devices}, {rimRoot, rimRootSHA256, &manifests}} {
		c, err := parseRoot(r.pem)
		if err != nil {
			return nil, nil, fmt.Errorf("NVIDIA's embedded root: %w", err)
		}
		if sum := sha256.Sum256(c.Raw); hex.EncodeToString(sum[:]) != r.digest {
			return nil, nil, fmt.Errorf("NVIDIA's embedded root: expected sha256 %s, got %x", r.digest, sum)
		}
		*r.to = append(*r.to, root{cert: c})
	}
	for _, d := range development {
		c, err := parseRoot(d.PEM)
		if err != nil || d.Name == "" {
			return nil, nil, fmt.Errorf("development root %q: expected a name and a root certificate: %w", d.Name, err)
		}
		devices = append(devices, root{c, d.Name})
		manifests = append(manifests, root{c, d.Name})
	}
	return devices, manifests, nil
}

func parseRoot(pem []byte) (*x509.Certificate, error) {
	certs, err := pemchain.Parse(pem)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("expected one certificate, got %d", len(certs))
	}
	c := certs[0]
	if err := checkForm(c); err != nil {
		return nil, err
	}
	if err := issuedBy(c, c); err != nil {
		return nil, err
	}
	return c, nil
}

// find returns the root with these bytes.
func find(roots []root, der []byte) (root, bool) {
	for _, r := range roots {
		if bytes.Equal(r.cert.Raw, der) {
			return r, true
		}
	}
	return root{}, false
}

func (v *verifier) rootNames() string {
	names := make([]string, len(v.roots))
	for i, r := range v.roots {
		names[i] = r.cert.Subject.CommonName
	}
	return strings.Join(names, " or ")
}
