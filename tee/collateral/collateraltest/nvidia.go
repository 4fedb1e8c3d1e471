package collateraltest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/snp"
)

// nvidiaAuthority certifies devices and answers for them.
type nvidiaAuthority struct {
	root, device *x509.Certificate
	key          *ecdsa.PrivateKey
}

func newNVIDIA(now time.Time) (*nvidiaAuthority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &nvidiaAuthority{key: key}
	start := now.Add(-time.Hour).UTC().Truncate(time.Second)
	root := &x509.Certificate{
		Subject: pkix.Name{CommonName: "NVIDIA device identity CA (TEST)"}, NotBefore: start, NotAfter: start.AddDate(30, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if a.root, err = issue(root, root, &key.PublicKey, key); err != nil {
		return nil, err
	}
	device := &x509.Certificate{Subject: pkix.Name{CommonName: "GH100 (TEST)"}, NotBefore: start, NotAfter: start.AddDate(30, 0, 0)}
	a.device, err = issue(device, a.root, &key.PublicKey, key)
	return a, err
}

// respond answers an OCSP request.
func (a *nvidiaAuthority) respond(r *http.Request, d dates) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	if err != nil {
		return nil, err
	}
	request, err := ocsp.ParseRequest(body)
	if err != nil {
		return nil, err
	}
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/ocsp-request" || request.SerialNumber.Cmp(a.device.SerialNumber) != 0 {
		return nil, found(false)
	}
	return ocsp.CreateResponse(a.root, a.root, ocsp.Response{
		Status: ocsp.Good, SerialNumber: request.SerialNumber, ThisUpdate: d.from, NextUpdate: d.to, IssuerHash: request.HashAlgorithm,
	}, a.key)
}

// Device returns a certificate that the OCSP responder knows, and its issuer.
func (s *Server) Device() (cert, issuer *x509.Certificate) { return s.nvidia.device, s.nvidia.root }

// SetRIM adds a manifest.
func (s *Server) SetRIM(id string, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rims[id] = body
}

// SetHygon adds a chip's certificates.
func (s *Server) SetHygon(serial string, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hygon[serial] = body
}

// rim is a manifest in the service's JSON.
func (s *Server) rim(id string, b Behaviour) ([]byte, error) {
	body, ok := s.rims[id]
	if !ok {
		return nil, found(false)
	}
	if b.Lie == OtherRoot {
		body = append([]byte("<!-- changed -->"), body...)
	}
	sum := sha256.Sum256(body)
	return json.Marshal(map[string]string{
		"id": id, "rim": base64.StdEncoding.EncodeToString(body), "sha256": hex.EncodeToString(sum[:]),
		"last_updated": "2025-03-14T15:09:03.011000", "rim_format": "TCG", "request_id": "00000000-0000-0000-0000-000000000000",
	})
}

// VCEK returns the certificate that the server gives for a chip, and the chip's
// key, to sign reports with. id is 64 bytes (Turin: 8).
func (s *Server) VCEK(g snp.Generation, id []byte, tcb snp.TCB) ([]byte, *ecdsa.PrivateKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.amd.vcek(g, id, tcb)
}

// AMDChain returns AMD's intermediate and root, in PEM: what a verifier is
// configured with as a development root.
func (s *Server) AMDChain(g snp.Generation) ([]byte, error) { return s.amd.chain(g, snp.SignerVCEK) }

// IntelRoot returns Intel's root in PEM.
func (s *Server) IntelRoot() []byte { return certPEM(s.intel.root) }

// Checks are checks that trust this server's roots.
func (s *Server) Checks() collateral.Checks {
	same := func(of map[string][]byte) func(string, []byte) error {
		return func(id string, body []byte) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if want, ok := of[id]; !ok || !bytes.Equal(want, body) {
				return errors.New("not what the vendor issued")
			}
			return nil
		}
	}
	return collateral.Checks{
		VCEK: s.amd.checkVCEK, AMDCRL: s.amd.checkCRL, AMDChain: s.amd.checkChain,
		TCBInfo: s.intel.checkDocument("tcbInfo"), QEIdentity: s.intel.checkDocument("enclaveIdentity"),
		PCKCRL: s.intel.checkPCKCRL, RootCRL: s.intel.checkRootCRL,
		RIM: same(s.rims), HSKCEK: same(s.hygon),
	}
}
