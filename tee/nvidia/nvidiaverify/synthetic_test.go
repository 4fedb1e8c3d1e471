package nvidiaverify

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/nvidia"
)

// Devices of every generation under a root that is not NVIDIA's.
func TestDevelopmentRoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, chip := range []string{"GH100", "GB100", "LS_10"} {
		d := w.NewDevice(t, chip, "1")
		e := d.Evidence(t, nonce()[:32])
		r, err := verifier1(t, w.options()).Verify(t.Context(), raw(t, e), fresh())
		if err != nil {
			t.Errorf("%s: %v", chip, err)
			continue
		}
		if !r.Simulated || r.Claims["simulated"] != true || r.Claims["development_root"] != "test" || r.Claims["x-nvidia-chip"] != chip || r.Claims["arch"] != d.Arch.Title() {
			t.Errorf("%s: got %+v", chip, r)
		}
		_, err = verifier1(t, Options{}).Verify(t.Context(), raw(t, e), fresh())
		refused(t, chip, err, "nvidia.chain", "expected the root")
		other := newWorld(t)
		_, err = verifier1(t, other.options()).Verify(t.Context(), raw(t, e), fresh())
		refused(t, chip, err, "nvidia.chain", "expected the root")
	}
}

// Every rule about certificates, each broken alone.
func TestChainRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(d *Device)
		check  string
		want   string
	}{
		"as it is":             {func(*Device) {}, "", ""},
		"leaf is an authority": {func(d *Device) { d.Templates[0].IsCA = true }, "nvidia.chain", "expected the certificate of a device"},
		"leaf signs":           {func(d *Device) { d.Templates[0].KeyUsage |= x509.KeyUsageCertSign }, "nvidia.chain", ""},
		"leaf's usage":         {func(d *Device) { d.Templates[0].KeyUsage = x509.KeyUsageKeyAgreement }, "nvidia.chain", "digital signature"},
		"no authority":         {func(d *Device) { d.Templates[2].IsCA = false }, "nvidia.chain", "expected an authority"},
		"authority's usage":    {func(d *Device) { d.Templates[1].KeyUsage = x509.KeyUsageDigitalSignature }, "nvidia.chain", "expected an authority"},
		"path length":          {func(d *Device) { d.Templates[3].MaxPathLen = 1 }, "nvidia.chain", "path length: allows 1"},
		"path length zero":     {func(d *Device) { d.Templates[2].MaxPathLen, d.Templates[2].MaxPathLenZero = 0, true }, "nvidia.chain", "path length: allows 0"},
		"expired leaf":         {func(d *Device) { d.Templates[0].NotAfter = Now().AddDate(0, 0, -1) }, "nvidia.chain", "certificate 0"},
		"future provisioner":   {func(d *Device) { d.Templates[2].NotBefore = Now().AddDate(0, 0, 1) }, "nvidia.chain", "certificate 2"},
		"critical": {func(d *Device) {
			d.Templates[1].ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}, "nvidia.chain", "1.2.3"},
		"no identity":            {func(d *Device) { d.Templates[0].ExtraExtensions = d.Templates[0].ExtraExtensions[1:] }, "nvidia.chain", "identity"},
		"no firmware identifier": {func(d *Device) { d.Templates[0].ExtraExtensions = d.Templates[0].ExtraExtensions[:1] }, "nvidia.chain", "firmware identifier"},
		"another maker":          {func(d *Device) { d.Templates[0].ExtraExtensions[0] = Name(t, "ACME:GH100:1") }, "nvidia.chain", "NVIDIA:chip:serial"},
		"another chip":           {func(d *Device) { d.Templates[0].ExtraExtensions[0] = Name(t, "NVIDIA:GB100:1") }, "nvidia.arch", "GB100"},
		"unknown chip":           {func(d *Device) { d.Templates[0].ExtraExtensions[0] = Name(t, "NVIDIA:TU102:1") }, "nvidia.arch", "TU102"},
		"two identifiers": {func(d *Device) {
			other := *d
			other.Arch = nvidia.Blackwell
			d.Templates[0].ExtraExtensions = append(d.Templates[0].ExtraExtensions, other.DICE(t, Flags{Bytes: []byte{0}, BitLength: 8}))
		}, "nvidia.chain", "got two"},
		"another device's key": {func(d *Device) { d.Keys[1] = NewKey(t) }, "nvidia.chain", "key of the device's identity"},
		"other firmware": {func(d *Device) {
			d.FWID = make([]byte, 48)
			d.Templates[0].ExtraExtensions[1] = d.DICE(t, Flags{})
		}, "nvidia.fwid", "0000000000"},
	} {
		d := w.NewDevice(t, "GH100", name)
		e := d.Evidence(t, nonce()[:32])
		c.change(d)
		d.Certify(t)
		e.Chain = PEM(d.Certs...)
		_, err := verifier1(t, w.options()).Verify(t.Context(), raw(t, e), fresh())
		if c.check == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		refused(t, name, err, c.check, c.want)
	}
	// A key and a signature of another algorithm.
	d := w.NewDevice(t, "GH100", "algorithms")
	e := d.Evidence(t, nonce()[:32])
	d.Certs[0] = Issue(t, d.Templates[0], d.Certs[1], &p256.PublicKey, d.Keys[1])
	e.Chain = PEM(d.Certs...)
	_, err = verifier1(t, w.options()).Verify(t.Context(), raw(t, e), fresh())
	refused(t, "key on P-256", err, "nvidia.chain", "P-384")
	d.Templates[0].SignatureAlgorithm = x509.ECDSAWithSHA256
	d.Certify(t)
	e.Chain = PEM(d.Certs...)
	_, err = verifier1(t, w.options()).Verify(t.Context(), raw(t, e), fresh())
	refused(t, "SHA-256", err, "nvidia.chain", "SHA-384")
	// An authority that NVIDIA does not know, with a name that it does.
	fake := newWorld(t)
	d = fake.NewDevice(t, "GH100", "fake")
	e = d.Evidence(t, nonce()[:32])
	e.Chain = PEM(append(d.Certs[:4:4], w.Cert)...)
	_, err = verifier1(t, w.options()).Verify(t.Context(), raw(t, e), fresh())
	refused(t, "another authority", err, "nvidia.chain", "certificate 3")
}

// What Blackwell says of its firmware.
func TestDICE(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.NewDevice(t, "GB100", "1")
	d.Templates[0].ExtraExtensions[1] = d.DICE(t, Flags{Bytes: []byte{0x10, 0, 0, 1}, BitLength: 32})
	d.Certify(t)
	e := d.Evidence(t, nonce()[:32])
	_, err := verifier1(t, w.options()).Verify(t.Context(), raw(t, e), fresh())
	refused(t, "debug", err, "nvidia.debug", "10000001")
	o := w.options()
	o.AllowDebug = true
	r, err := verifier1(t, o).Verify(t.Context(), raw(t, e), fresh())
	if err != nil || len(r.Warnings) != 1 || r.Warnings[0].Check != "nvidia.debug" || r.Claims["x-nvidia-dice-flags"] != "10000001" {
		t.Errorf("debug, allowed: %+v, %v", r, err)
	}
	d.FWID = make([]byte, 48)
	d.Templates[0].ExtraExtensions[1] = d.DICE(t, Flags{Bytes: []byte{0x80}, BitLength: 8})
	d.Certify(t)
	e.Chain = PEM(d.Certs...)
	_, err = verifier1(t, w.options()).Verify(t.Context(), raw(t, e), fresh())
	refused(t, "other firmware", err, "nvidia.fwid", "")
	for name, value := range map[string]string{
		"empty": "", "no sequence": "0400", "nothing in it": "3000", "universal member": "30020500", "order": "3004810100800100", "cut": "308101",
		"flags": "3003870107", "no digests": "3002a600", "another hash": "3010a60e300c06082a8648ce3d0403030400",
	} {
		b, err := hex.DecodeString(value)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseTCBInfo(b); err == nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func FuzzDICE(f *testing.F) {
	w := newWorld(f)
	for _, chip := range []string{"GH100", "GB100"} {
		f.Add(w.NewDevice(f, chip, "1").DICE(f, Flags{Bytes: []byte{1}, BitLength: 8}).Value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		if d, err := parseTCBInfo(value); err == nil && len(d.fwid) != 48 {
			t.Errorf("got %+v", d)
		}
		if d, err := parseComposite(value, nil); err == nil {
			t.Errorf("got %+v", d)
		}
	})
}

// A chain is verified once, and anew with another root.
func TestMemo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.NewDevice(t, "GH100", "1")
	v, ok := verifier1(t, w.options()).(*verifier)
	if !ok {
		t.Fatal("another type")
	}
	var first *chain
	for i := range 3 {
		e := d.Evidence(t, nonce()[:32])
		c, err := v.verifyChain(&device{Device: &e})
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && c != first {
			t.Error("the chain was verified again")
		}
		first = c
	}
	if first.to.After(d.Certs[0].NotAfter) || first.from.Before(d.Certs[0].NotBefore) {
		t.Errorf("remembered from %s to %s", first.from, first.to)
	}
}

func TestMachineOfAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var gpus, switches []*Device
	for i := range 8 {
		gpus = append(gpus, w.NewDevice(t, "GH100", fmt.Sprint("g", i)))
	}
	for i := range 4 {
		switches = append(switches, w.NewDevice(t, "LS_10", fmt.Sprint("s", i)))
	}
	pdis := func(of []*Device, turned bool) []byte {
		var out []byte
		for _, d := range of {
			b := unhex(t, d.PDI)
			for i := range b {
				if turned {
					out = append(out, b[len(b)-1-i])
				} else {
					out = append(out, b[i])
				}
			}
		}
		return out
	}
	for _, g := range gpus {
		g.Set(nvidia.FieldPDI, append(pdis(switches, true), make([]byte, 16)...))
	}
	for _, s := range switches {
		s.Set(nvidia.FieldSwitchGPUs, append(pdis(gpus, false), make([]byte, 64)...))
	}
	verify := func() ([]*tee.Result, error) {
		var all []nvidia.Device
		for _, d := range append(gpus[:8:8], switches...) {
			all = append(all, d.Evidence(t, nonce()[:32]))
		}
		return verifier1(t, w.options()).VerifyAll(t.Context(), raw(t, all...), fresh())
	}
	r, err := verify()
	if err != nil || len(r) != 13 || !r[12].Simulated {
		t.Fatalf("got %d results, %v", len(r), err)
	}
	stranger := gpus[7]
	gpus[7] = w.NewDevice(t, "GH100", "stranger")
	gpus[7].Set(nvidia.FieldPDI, pdis(switches, true))
	_, err = verify()
	refused(t, "another GPU", err, "nvidia.topology", "device_evidence_list[8]")
	gpus[7] = stranger
	gpus[0].Set(nvidia.FieldPDI, pdis(switches[1:], true))
	_, err = verify()
	refused(t, "three switches", err, "nvidia.topology", "device_evidence_list[0]")
	gpus[0].Set(nvidia.FieldPDI, pdis(switches, true))
	switches[2].Set(nvidia.FieldPDI, unhex(t, switches[1].PDI))
	_, err = verify()
	refused(t, "a switch under another's name", err, "nvidia.topology", "device_evidence_list[10]")
}

// A context that has ended is no verdict.
func TestContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := verifier1(t, Options{}).Verify(ctx, raw(t, hopper(t)), bound(hopper(t)))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
