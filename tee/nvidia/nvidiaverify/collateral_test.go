package nvidiaverify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/nvidia"
)

// manifests are the two of a GPU, which agree with it: even indices are the
// driver's, odd ones the firmware's.
func manifests(d *Device) (driver, vbios map[int][][]byte) {
	driver, vbios = map[int][][]byte{}, map[int][][]byte{}
	for i, v := range d.Values[:40] {
		m := driver
		if i%2 == 1 {
			m = vbios
		}
		m[i] = [][]byte{bytes.Repeat([]byte{byte(i)}, 48), v}
	}
	return driver, vbios
}

func TestManifests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	signer := w.NewSigner(t, nil)
	stranger := newWorld(t).NewSigner(t, nil)
	const driverID, vbiosID = "NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_G520_0200_882_96009F000A"
	type side struct {
		driver, vbios map[int][][]byte
		d             *Device
		s             *Signer
		product       string
		version       string
	}
	for name, c := range map[string]struct {
		change func(*side)
		// measres is the claim; missing says why a manifest does not count.
		measres any
		missing string
		// mismatch is in the claim x-nvidia-measurement-mismatches.
		mismatch string
	}{
		"as published":        {func(*side) {}, "success", "", ""},
		"another driver":      {func(s *side) { s.driver[4] = [][]byte{bytes.Repeat([]byte{1}, 48)} }, "fail", "", "driver 5"},
		"another firmware":    {func(s *side) { s.vbios[9] = [][]byte{make([]byte, 48)} }, "fail", "", "vbios 10"},
		"both claim an index": {func(s *side) { s.vbios[2] = [][]byte{s.d.Values[2]} }, "fail", "", "vbios 3 (also in the manifest of the driver)"},
		"index beyond":        {func(s *side) { s.d.Values = s.d.Values[:39] }, "fail", "", "vbios 40"},
		"decoder off": {func(s *side) {
			s.vbios[35] = [][]byte{make([]byte, 48)}
			s.d.Set(nvidia.FieldNVDEC0Status, []byte{0x55})
		}, "success", "", ""},
		"decoder on":           {func(s *side) { s.vbios[35] = [][]byte{make([]byte, 48)} }, "fail", "", "vbios 36"},
		"another chip's":       {func(s *side) { s.product = "GB100" }, nil, "product: expected GH100", ""},
		"another version's":    {func(s *side) { s.version = "550.90.08" }, nil, "version: expected 550.90.07", ""},
		"nothing in it":        {func(s *side) { s.driver = nil }, nil, "expected measurements that count", ""},
		"another signer":       {func(s *side) { s.s = stranger }, nil, "expected the root of manifests", ""},
		"another signer's key": {func(s *side) { s.s = &Signer{Certs: signer.Certs, Keys: stranger.Keys} }, nil, "is not that of the document", ""},
		"signer is the root": {func(s *side) {
			s.s = &Signer{Certs: []*x509.Certificate{w.Cert}, Keys: []*ecdsa.PrivateKey{w.Key}}
		}, nil, "expected the certificates of a signer", ""},
		"signer is no signer": {func(s *side) {
			s.s = w.NewSigner(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })
		}, nil, "digital signature", ""},
		"signer to be": {func(s *side) {
			s.s = w.NewSigner(t, func(c *x509.Certificate) { c.NotBefore = Now().AddDate(0, 0, 1) })
		}, nil, "is not valid before", ""},
		"report without driver": {func(s *side) { s.d.Fields = s.d.Fields[:4] }, nil, "the report lacks", ""},
		"path in the name":      {func(s *side) { s.d.Set(nvidia.FieldDriverVersion, []byte("../x\x00")) }, nil, "cannot be", ""},
	} {
		d := w.NewDevice(t, "GH100", name)
		s := side{d: d, s: signer, product: "GH100", version: "550.90.07"}
		s.driver, s.vbios = manifests(d)
		c.change(&s)
		o := w.options()
		o.CompareRIM = true
		o.Collateral = &store{rims: map[string][]byte{
			driverID: s.s.Manifest(t, s.product, "GPU", s.version, s.driver),
			vbiosID:  signer.Manifest(t, "GH100", "GPU", "96.00.9F.00.0A", s.vbios),
		}}
		e := raw(t, d.Evidence(t, nonce()[:32]))
		r, err := verifier1(t, o).Verify(t.Context(), e, fresh())
		if c.missing != "" {
			u, ok := errors.AsType[*tee.UnavailableError](err)
			if !ok || !strings.Contains(u.Error(), c.missing) {
				t.Errorf("%s: got %v, expected %q", name, err, c.missing)
			}
			o.AllowMissingCollateral = true
			r, err = verifier1(t, o).Verify(t.Context(), e, fresh())
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		claimed, _ := r.Claims["x-nvidia-measurement-mismatches"].([]any)
		if r.Claims["measres"] != c.measres || (c.measres == "success") != (r.Claims["secboot"] == true) || (c.mismatch == "") != (claimed == nil) ||
			(c.mismatch != "" && claimed[0] != c.mismatch) || len(r.Warnings) != len(claimed)+min(1, len(c.missing)) {
			t.Errorf("%s: measres %v, mismatches %v, warnings %v", name, r.Claims["measres"], claimed, r.Warnings)
		}
	}
}

// Each generation asks for its own manifests.
func TestManifestNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	signer := w.NewSigner(t, nil)
	for _, c := range []struct{ chip, driver, vbios, product, edition, version string }{
		{"GH100", "NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_G520_0200_882_96009F000A", "GH100", "GPU", "96.00.9F.00.0A"},
		{"GB110", "NV_GPU_CC_DRIVER_GB110_550.90.07", "NV_GPU_VBIOS_G520_0200_882_96009F000A", "GB110", "GPU", "96.00.9F.00.0A"},
		{"LS_10", "", "NV_SWITCH_BIOS_5612_0002_890_961055000A", "LS10", "SWITCH", "96.10.55.00.0A"},
	} {
		d := w.NewDevice(t, c.chip, "1")
		driver, vbios := manifests(d)
		s := &store{rims: map[string][]byte{c.vbios: signer.Manifest(t, c.product, c.edition, c.version, vbios)}}
		if c.driver != "" {
			s.rims[c.driver] = signer.Manifest(t, c.product, c.edition, "550.90.07", driver)
		}
		o := w.options()
		o.CompareRIM, o.Collateral = true, s
		r, err := verifier1(t, o).Verify(t.Context(), raw(t, d.Evidence(t, nonce()[:32])), fresh())
		if err != nil || r.Claims["measres"] != "success" || s.calls != len(s.rims) {
			t.Errorf("%s: %v, %v, %d calls", c.chip, r, err, s.calls)
		}
		clear(s.rims)
		_, err = verifier1(t, o).Verify(t.Context(), raw(t, d.Evidence(t, nonce()[:32])), fresh())
		if u, ok := errors.AsType[*tee.UnavailableError](err); !ok || !strings.Contains(u.Error(), c.vbios) || !strings.Contains(u.Error(), c.driver) {
			t.Errorf("%s: got %v", c.chip, err)
		}
		if e, ok := errors.AsType[*tee.CollateralError](err); !ok || e.Reason != tee.CollateralMissing {
			t.Errorf("%s: got %v", c.chip, err)
		}
	}
}

// A device under NVIDIA's root is not held against somebody else's manifests.
func TestManifestOfAnotherRoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := vector(t, nvidia.LS10, "ls10.txt", "ls10-chain.pem")
	const id = "NV_SWITCH_BIOS_5612_0002_890_9610550001"
	o := w.options()
	o.Now, o.CompareRIM = Now, true
	o.Collateral = &store{rims: map[string][]byte{id: w.NewSigner(t, nil).Manifest(t, "LS10", "SWITCH", "96.10.55.00.01", map[int][][]byte{0: {make([]byte, 48)}})}}
	_, err := verifier1(t, o).Verify(t.Context(), raw(t, d), bound(d))
	if u, ok := errors.AsType[*tee.UnavailableError](err); !ok || !strings.Contains(u.Error(), "expected the root of manifests") {
		t.Errorf("got %v", err)
	}
}

// responder answers for every certificate of a device.
type responder struct {
	t     *testing.T
	keys  map[string]*ecdsa.PrivateKey // by subject
	tune  func(r *ocsp.Response, cert *x509.Certificate)
	by    func(issuer *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey)
	twist func(der []byte) []byte
}

func (r *responder) answer(cert, issuer *x509.Certificate) ([]byte, error) {
	a := ocsp.Response{Status: ocsp.Good, SerialNumber: cert.SerialNumber, ThisUpdate: Now().Add(-time.Hour), NextUpdate: Now().Add(23 * time.Hour)}
	if r.tune != nil {
		r.tune(&a, cert)
	}
	who, key := issuer, r.keys[issuer.Subject.CommonName]
	if r.by != nil {
		who, key = r.by(issuer, key)
	}
	der := OCSP(r.t, issuer, who, a, key)
	if r.twist != nil {
		der = r.twist(der)
	}
	return der, nil
}

func TestRevocation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.NewDevice(t, "GH100", "1")
	keys := map[string]*ecdsa.PrivateKey{}
	for i, c := range d.Certs {
		keys[c.Subject.CommonName] = d.Keys[i]
	}
	delegate := func(change func(*x509.Certificate)) func(*x509.Certificate, *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		return func(issuer *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
			own := NewKey(t)
			tmpl := Template("responder")
			tmpl.IsCA, tmpl.KeyUsage, tmpl.ExtKeyUsage = false, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
			change(tmpl)
			return Issue(t, tmpl, issuer, &own.PublicKey, key), own
		}
	}
	second, stranger := d.Certs[2].SerialNumber, newWorld(t)
	for name, c := range map[string]struct {
		r responder
		// refuses names the check of a failure, missing the text of what is
		// missing; neither: the status is good.
		refuses, missing, want string
	}{
		"good":      {responder{}, "", "", ""},
		"delegated": {responder{by: delegate(func(*x509.Certificate) {})}, "", "", ""},
		"revoked": {responder{tune: func(r *ocsp.Response, c *x509.Certificate) {
			if c.SerialNumber.Cmp(second) == 0 {
				r.Status, r.RevokedAt, r.RevocationReason = ocsp.Revoked, Now().Add(-48*time.Hour), ocsp.KeyCompromise
			}
		}}, "nvidia.revocation", "", "GH100 Provisioner"},
		"unknown": {responder{tune: func(r *ocsp.Response, _ *x509.Certificate) { r.Status = ocsp.Unknown }}, "nvidia.revocation", "", "status unknown"},
		"expired": {responder{tune: func(r *ocsp.Response, _ *x509.Certificate) {
			r.ThisUpdate, r.NextUpdate = Now().Add(-72*time.Hour), Now().Add(-48*time.Hour)
		}}, "nvidia.collateral", "", "expired at 2026-02-27"},
		"old and for ever": {responder{tune: func(r *ocsp.Response, _ *x509.Certificate) {
			r.ThisUpdate, r.NextUpdate = Now().Add(-25*time.Hour), time.Time{}
		}}, "nvidia.collateral", "", "expired at"},
		"revoked and expired": {responder{tune: func(r *ocsp.Response, _ *x509.Certificate) {
			r.Status, r.ThisUpdate, r.NextUpdate = ocsp.Revoked, Now().Add(-72*time.Hour), Now().Add(-48*time.Hour)
		}}, "nvidia.revocation", "", "revoked at"},
		"revoked, by a responder of old": {responder{
			tune: func(r *ocsp.Response, _ *x509.Certificate) {
				r.Status, r.ThisUpdate, r.NextUpdate = ocsp.Revoked, Now().AddDate(0, -2, 0), Now().AddDate(0, -2, 1)
			},
			by: delegate(func(c *x509.Certificate) { c.NotAfter = Now().AddDate(0, -1, 0) }),
		}, "nvidia.revocation", "", "revoked at"},
		"revoked tomorrow": {responder{tune: func(r *ocsp.Response, _ *x509.Certificate) {
			r.Status, r.ThisUpdate = ocsp.Revoked, Now().Add(time.Hour)
		}}, "nvidia.revocation", "", "revoked at"},
		"of tomorrow": {responder{tune: func(r *ocsp.Response, _ *x509.Certificate) { r.ThisUpdate = Now().Add(time.Hour) }}, "", "in the future", ""},
		"backwards":   {responder{tune: func(r *ocsp.Response, _ *x509.Certificate) { r.NextUpdate = r.ThisUpdate.Add(-time.Hour) }}, "", "expires before", ""},
		"of another":  {responder{tune: func(r *ocsp.Response, _ *x509.Certificate) { r.SerialNumber = Template("x").SerialNumber }}, "", "no response matching", ""},
		"by another": {responder{by: func(i *x509.Certificate, _ *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
			return i, NewKey(t)
		}}, "", "bad OCSP signature", ""},
		"by nobody's child": {responder{by: func(i *x509.Certificate, _ *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
			return delegate(func(*x509.Certificate) {})(stranger.Cert, stranger.Key)
		}}, "", "bad OCSP signature", ""},
		"not authorised":     {responder{by: delegate(func(c *x509.Certificate) { c.ExtKeyUsage = nil })}, "", "authorises to sign", ""},
		"responder is old":   {responder{by: delegate(func(c *x509.Certificate) { c.NotAfter = Now().AddDate(0, -1, 0) })}, "", "a certificate that is valid", ""},
		"cut":                {responder{twist: func(b []byte) []byte { return b[:len(b)-1] }}, "", "OCSP response about", ""},
		"something else":     {responder{twist: func([]byte) []byte { return []byte("busy") }}, "", "OCSP response about", ""},
		"changed":            {responder{twist: func(b []byte) []byte { b[len(b)-1] ^= 1; return b }}, "", "OCSP response about", ""},
		"longer than decent": {responder{twist: func(b []byte) []byte { return append(b, make([]byte, maxOCSP)...) }}, "", "at most", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.r.t, c.r.keys = t, keys
			o := w.options()
			o.CheckRevocation, o.Collateral = true, &store{ocsp: c.r.answer}
			e := raw(t, d.Evidence(t, nonce()[:32]))
			r, err := verifier1(t, o).Verify(t.Context(), e, fresh())
			switch {
			case c.refuses != "":
				refused(t, name, err, c.refuses, c.want)
			case c.missing != "":
				u, ok := errors.AsType[*tee.UnavailableError](err)
				if !ok || !strings.Contains(u.Error(), c.missing) {
					t.Fatalf("got %v, expected %q", err, c.missing)
				}
				if len(u.Failures) != 3 {
					t.Errorf("got %d failures", len(u.Failures))
				}
				o.AllowMissingCollateral = true
				if r, err = verifier1(t, o).Verify(t.Context(), e, fresh()); err != nil || len(r.Warnings) != 3 || ocspStatus(r) != nil {
					t.Errorf("tolerated: %+v, %v", r, err)
				}
			default:
				if err != nil || ocspStatus(r) != "good" || r.Warnings != nil || r.Claims["collateral_expiration_status"] != "0" {
					t.Errorf("got %+v, %v", r, err)
				}
			}
			if c.refuses == "" {
				return
			}
			o.AllowMissingCollateral = true
			r, err = verifier1(t, o).Verify(t.Context(), e, fresh())
			if c.refuses == "nvidia.collateral" {
				if err != nil || ocspStatus(r) != nil || r.Claims["collateral_expiration_status"] != "1" || len(r.Warnings) != 3 {
					t.Errorf("tolerated: %+v, %v", r, err)
				}
				return
			}
			refused(t, name+", tolerant", err, c.refuses, c.want)
		})
	}
}

func ocspStatus(r *tee.Result) any {
	c, _ := r.Claims["x-nvidia-gpu-attestation-report-cert-chain"].(map[string]any)
	return c["x-nvidia-cert-ocsp-status"]
}

// The signers of manifests can be revoked too.
func TestRevokedManifest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.NewDevice(t, "LS_10", "1")
	signer := w.NewSigner(t, nil)
	_, vbios := manifests(d)
	keys := map[string]*ecdsa.PrivateKey{}
	for i, c := range d.Certs {
		keys[c.Subject.CommonName] = d.Keys[i]
	}
	bad := false
	answers := &responder{t: t, keys: keys, tune: func(r *ocsp.Response, c *x509.Certificate) {
		if bad && c.Equal(signer.Certs[0]) {
			r.Status, r.RevokedAt = ocsp.Revoked, Now()
		}
	}}
	const id = "NV_SWITCH_BIOS_5612_0002_890_961055000A"
	o := w.options()
	o.CheckRevocation, o.CompareRIM = true, true
	o.Collateral = &store{rims: map[string][]byte{id: signer.Manifest(t, "LS10", "SWITCH", "96.10.55.00.0A", maps.Clone(vbios))}, ocsp: answers.answer}
	e := raw(t, d.Evidence(t, nonce()[:32]))
	v := verifier1(t, o)
	r, err := v.Verify(t.Context(), e, fresh())
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := r.Claims["x-nvidia-switch-bios-rim-cert-chain"].(map[string]any); r.Claims["measres"] != "success" || c["x-nvidia-cert-ocsp-status"] != "good" {
		t.Errorf("got %v", r.Claims)
	}
	bad = true
	_, err = v.Verify(t.Context(), e, fresh())
	refused(t, "revoked signer", err, "nvidia.revocation", "manifest "+id)
}
