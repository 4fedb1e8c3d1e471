package nvidiaverify

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/nvidia"
)

// Evidence as NVIDIA's devices made it is genuine under NVIDIA's root.
func TestVectors(t *testing.T) {
	t.Parallel()
	v := verifier1(t, Options{})
	for name, c := range map[string]struct {
		device nvidia.Device
		class  tee.Class
		model  string
		fwid   any
	}{
		"hopper":     {hopper(t), tee.GPU, "GH100 A01 GSP BROM", true},
		"hopper 580": {vector(t, nvidia.Hopper, "hopper580.txt", "hopper580-chain.pem"), tee.GPU, "GH100 A01 GSP BROM", true},
		"blackwell":  {vector(t, nvidia.Blackwell, "blackwell.txt", "blackwell-chain.pem"), tee.GPU, "GB100 A01 GSP BROM", true},
		"switch":     {vector(t, nvidia.LS10, "ls10.txt", "ls10-chain.pem"), Switch, "LS_10 A01 FSP BROM", nil},
	} {
		r, err := v.Verify(t.Context(), raw(t, c.device), bound(c.device))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.TEE != tee.NVIDIA || r.Class != c.class || r.Simulated || !bytes.Equal(r.ReportData, c.device.Report[4:36]) || r.InitData != nil || r.Warnings != nil {
			t.Errorf("%s: got %+v", name, r)
		}
		k := "x-nvidia-" + string(c.class) + "-attestation-report-"
		if r.Claims["hwmodel"] != c.model || r.Claims[k+"signature-verified"] != true || r.Claims[k+"nonce-match"] != true || r.Claims["simulated"] != false ||
			r.Claims[k+"cert-chain-fwid-match"] != c.fwid || r.Claims["measres"] != nil || r.Claims["x-nvidia-pdi"] == "" {
			t.Errorf("%s: claims %v", name, r.Claims)
		}
		if _, err := json.Marshal(r.Claims); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGoldenClaims(t *testing.T) {
	t.Parallel()
	r, err := verifier1(t, Options{}).Verify(t.Context(), raw(t, hopper(t)), bound(hopper(t)))
	if err != nil {
		t.Fatal(err)
	}
	var want, got map[string]any
	if err := json.Unmarshal(file(t, "hopperAttestationReport-claims.txt"), &want); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r.Claims)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for name := range want {
		if diff := cmp.Diff(want[name], got[name]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// The published chains that are not whole.
func TestBrokenChains(t *testing.T) {
	t.Parallel()
	v := verifier1(t, Options{})
	for name, c := range map[string]struct{ file, want string }{
		"the root alone":          {"hopper_cert_chain_case2.txt", "expected 5 certificates, got 1"},
		"without the provisioner": {"hopper_cert_chain_case3.txt", "expected 5 certificates, got 4"},
		"without the leaf":        {"hopper_cert_chain_case4.txt", "expected 5 certificates, got 4"},
		"the leaf alone":          {"hopper_signing_cert.pem", "expected 5 certificates, got 1"},
		"of another device":       {"hopper580-chain.pem", ""},
	} {
		d := hopper(t)
		d.Chain = file(t, c.file)
		check := "nvidia.chain"
		if c.want == "" {
			check = "nvidia.signature"
		}
		_, err := v.Verify(t.Context(), raw(t, d), bound(d))
		refused(t, name, err, check, c.want)
	}
	// The hole is filled with something, so that the number is right.
	certs := split(t, file(t, "hopper_cert_chain_case1.txt"))
	for name, c := range map[string]struct {
		chain []int
		want  string
	}{
		"loop":        {[]int{0, 1, 2, 1, 4}, "issuer"},
		"leaf twice":  {[]int{0, 0, 1, 2, 3}, "expected the root"},
		"upside down": {[]int{4, 3, 2, 1, 0}, "expected the root"},
		"hole":        {[]int{0, 1, 3, 4, 4}, "issuer"},
		"roots":       {[]int{0, 4, 4, 4, 4}, "issuer"},
		"swapped":     {[]int{1, 0, 2, 3, 4}, "expected the certificate of a device"},
	} {
		d := hopper(t)
		d.Chain = nil
		for _, i := range c.chain {
			d.Chain = append(d.Chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs[i]})...)
		}
		_, err := v.Verify(t.Context(), raw(t, d), bound(d))
		refused(t, name, err, "nvidia.chain", c.want)
	}
}

func split(t testing.TB, chain []byte) [][]byte {
	t.Helper()
	var out [][]byte
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		out = append(out, block.Bytes)
	}
	return out
}

// No bit of what is signed, of signatures and of certificates may be another.
func TestEachBit(t *testing.T) {
	t.Parallel()
	v := verifier1(t, Options{})
	for name, d := range map[string]nvidia.Device{
		"hopper": hopper(t), "blackwell": vector(t, nvidia.Blackwell, "blackwell.txt", "blackwell-chain.pem"), "switch": vector(t, nvidia.LS10, "ls10.txt", "ls10-chain.pem"),
	} {
		want := bound(d)
		genuine := func(d nvidia.Device) bool {
			_, err := v.Verify(t.Context(), raw(t, d), want)
			return err == nil
		}
		report := func(b []byte) bool {
			d := d
			d.Report = b
			return genuine(d)
		}
		if name == "hopper" {
			teetest.EachBit(t, name+": report", d.Report, report)
		} else { // the layout is the same, so that a sample will do
			end := len(d.Report) - nvidia.SignatureSize
			for i := 0; i < end; i += 7 {
				b := bytes.Clone(d.Report)
				b[i] ^= 1 << (i % 8)
				if report(b) {
					t.Errorf("%s: genuine with bit %d of byte %d flipped", name, i%8, i)
				}
			}
			teetest.EachBit(t, name+": signature", d.Report[end:], func(s []byte) bool {
				return report(append(bytes.Clone(d.Report[:end]), s...))
			})
		}
		certs := split(t, d.Chain)
		for i := range certs {
			if name != "hopper" && i > 0 {
				break // the upper ones are as Hopper's
			}
			teetest.EachBit(t, name+": certificate", certs[i], func(b []byte) bool {
				mutated := slices.Clone(certs)
				mutated[i] = b
				d := d
				d.Chain = nil
				for _, der := range mutated {
					d.Chain = append(d.Chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
				}
				return genuine(d)
			})
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	v := verifier1(t, Options{})
	good := hopper(t)
	change := func(f func(d *nvidia.Device)) json.RawMessage {
		d := good
		d.Report = bytes.Clone(d.Report)
		f(&d)
		return raw(t, d)
	}
	signature := len(good.Report) - nvidia.SignatureSize
	n := unhex(t, "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973")
	for name, c := range map[string]struct {
		evidence json.RawMessage
		check    string
		want     string
	}{
		"nothing":          {nil, "nvidia.format", ""},
		"no device":        {json.RawMessage(`{"device_evidence_list":[]}`), "nvidia.format", "1 to 32"},
		"twice":            {raw(t, good, good), "nvidia.devices", "device_evidence_list[1]"},
		"two, one bad":     {raw(t, vector(t, nvidia.LS10, "ls10.txt", "ls10-chain.pem"), func() nvidia.Device { d := good; d.Report = d.Report[1:]; return d }()), "nvidia.report", "device_evidence_list[1]"},
		"cut":              {change(func(d *nvidia.Device) { d.Report = d.Report[:1000] }), "nvidia.report", "byte"},
		"padded":           {change(func(d *nvidia.Device) { d.Report = append(d.Report, 0) }), "nvidia.report", "nothing after"},
		"zero signature":   {change(func(d *nvidia.Device) { clear(d.Report[signature:]) }), "nvidia.signature", ""},
		"r is n":           {change(func(d *nvidia.Device) { copy(d.Report[signature:], n) }), "nvidia.signature", ""},
		"s is n":           {change(func(d *nvidia.Device) { copy(d.Report[signature+48:], n) }), "nvidia.signature", ""},
		"r and s swapped":  {change(func(d *nvidia.Device) { s := d.Report[signature:]; copy(s, append(bytes.Clone(s[48:]), s[:48]...)) }), "nvidia.signature", ""},
		"another nonce":    {change(func(d *nvidia.Device) { d.Report[4]++ }), "nvidia.report_data", "nonce"},
		"another arch":     {change(func(d *nvidia.Device) { d.Arch = nvidia.Blackwell }), "nvidia.arch", "GH100"},
		"a switch":         {change(func(d *nvidia.Device) { d.Arch = nvidia.LS10 }), "nvidia.arch", "GH100"},
		"stated driver":    {change(func(d *nvidia.Device) { d.DriverVersion = "999" }), "nvidia.claims", "driver_version"},
		"chain is no PEM":  {change(func(d *nvidia.Device) { d.Chain = []byte("x") }), "nvidia.chain", "PEM"},
		"another FWID":     {change(func(d *nvidia.Device) { i := bytes.Index(d.Report, unhex(t, "f5c384aebb579217")); d.Report[i]++ }), "nvidia.fwid", "f5c384ae"},
		"two chains in it": {change(func(d *nvidia.Device) { d.Chain = append(append(bytes.Clone(d.Chain), '\n'), d.Chain...) }), "nvidia.chain", "expected 5"},
	} {
		_, err := v.Verify(t.Context(), c.evidence, bound(good))
		refused(t, name, err, c.check, c.want)
	}
	_, err := v.Verify(t.Context(), raw(t, good), tee.Expected{ReportData: make([]byte, 64)})
	refused(t, "other report data", err, "nvidia.report_data", "device_evidence_list[0].nonce")
	_, err = v.Verify(t.Context(), raw(t, good), tee.Expected{})
	refused(t, "no report data", err, "nvidia.report_data", "none given")
	initData := bound(good)
	initData.InitData = make([]byte, 32)
	_, err = v.Verify(t.Context(), raw(t, good), initData)
	refused(t, "initdata, which nothing binds", err, "nvidia.init_data", "no field")
	r, err := v.Verify(t.Context(), raw(t, good), tee.Expected{AnyReportData: true})
	if err != nil || len(r.Warnings) != 1 || r.Warnings[0].Check != "nvidia.report_data" || r.Claims["x-nvidia-gpu-attestation-report-nonce-match"] != nil {
		t.Errorf("any report data: %+v, %v", r, err)
	}
	old := verifier1(t, Options{Now: at(2019, 1)})
	_, err = old.Verify(t.Context(), raw(t, good), bound(good))
	refused(t, "not yet valid", err, "nvidia.chain", "valid at 2019-01-01")
	for _, chain := range []string{"hopperAttestationReport.txt"} {
		_, err = New(Options{DevelopmentRoots: []DevelopmentRoot{{Name: "x", PEM: file(t, chain)}}})
		if err == nil {
			t.Error("something was taken for a root")
		}
	}
	if _, err := New(Options{CheckRevocation: true}); err == nil {
		t.Error("revocation without collateral")
	}
}

// Eight GPUs and four switches of one machine.
func TestMachine(t *testing.T) {
	t.Parallel()
	v := verifier1(t, Options{})
	var all []nvidia.Device
	for _, name := range []string{"gpu_evidence.json", "switch_evidence.json"} {
		b, err := nvidia.FromRaw(file(t, name))
		if err != nil {
			t.Fatal(err)
		}
		e, err := nvidia.ParseEvidence(b)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e.Devices...)
	}
	results, err := v.VerifyAll(t.Context(), raw(t, all...), bound(all[0]))
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 13 || results[0].Class != tee.GPU || results[8].Class != Switch || results[12].Class != PPCIe {
		t.Fatalf("got %d results", len(results))
	}
	if c := results[12].Claims; c["gpu_count"] != 8 || c["switch_count"] != 4 || results[12].Simulated {
		t.Errorf("got %v", c)
	}
	// Fewer devices are fewer results, and nothing is said of the machine.
	results, err = v.VerifyAll(t.Context(), raw(t, all[3:9]...), bound(all[0]))
	if err != nil || len(results) != 6 {
		t.Errorf("got %d results, %v", len(results), err)
	}
}

// The measurements of a real switch are those of its real manifest.
func TestRealManifest(t *testing.T) {
	t.Parallel()
	d := vector(t, nvidia.LS10, "ls10.txt", "ls10-chain.pem")
	const id = "NV_SWITCH_BIOS_5612_0002_890_9610550001"
	s := &store{rims: map[string][]byte{id: file(t, id+".xml")}}
	o := Options{Now: at(2026, 10), CompareRIM: true, Collateral: s}
	r, err := verifier1(t, o).Verify(t.Context(), raw(t, d), bound(d))
	if err != nil {
		t.Fatal(err)
	}
	if r.Claims["measres"] != "success" || r.Claims["secboot"] != true || r.Claims["dbgstat"] != "disabled" || r.Claims["x-nvidia-switch-bios-rim-signature-verified"] != true ||
		r.Claims["x-nvidia-switch-bios-rim-version-match"] != true || r.Claims["collateral_expiration_status"] != "0" || r.Warnings != nil {
		t.Errorf("claims %v, warnings %v", r.Claims, r.Warnings)
	}
	// After its signer's certificate has expired.
	o.Now = at(2029, 1)
	_, err = verifier1(t, o).Verify(t.Context(), raw(t, d), bound(d))
	refused(t, "expired", err, "nvidia.collateral", "2027-11-02")
	o.AllowMissingCollateral = true
	r, err = verifier1(t, o).Verify(t.Context(), raw(t, d), bound(d))
	if err != nil || r.Claims["collateral_expiration_status"] != "1" || len(r.Warnings) != 1 || r.Claims["measres"] != "success" {
		t.Errorf("expired, tolerated: %+v, %v", r, err)
	}
}

// The firmware's part of a real GPU's manifests: the driver's is not published.
func TestRealFirmwareManifest(t *testing.T) {
	t.Parallel()
	d := vector(t, nvidia.Hopper, "hopper580.txt", "hopper580-chain.pem")
	const id = "NV_GPU_VBIOS_1010_0205_862_9600740020"
	s := &store{rims: map[string][]byte{id: file(t, id+".xml")}}
	o := Options{Now: at(2025, 6), CompareRIM: true, Collateral: s, AllowMissingCollateral: true}
	v, ok := verifier1(t, o).(*verifier)
	if !ok {
		t.Fatal("another type")
	}
	r, err := v.Verify(t.Context(), raw(t, d), bound(d))
	if err != nil || r.Claims["measres"] != nil || len(r.Warnings) != 1 || r.Warnings[0].Check != "nvidia.rim" || r.Claims["x-nvidia-gpu-vbios-rim-signature-verified"] != true {
		t.Fatalf("%v, %v, %v", r, err, r.Warnings)
	}
	p, err := nvidia.ParseReport(d.Report)
	if err != nil {
		t.Fatal(err)
	}
	m, err := v.readManifest(s.rims[id], v.roots[0], source{product: "GH100", edition: "GPU", version: "96.00.74.00.20"})
	if err != nil {
		t.Fatal(err)
	}
	compared, differ := 0, []int{}
	for _, one := range m.Measurements {
		if !one.Active || one.Index == nvdecIndex && p.NVDEC0Disabled() {
			continue
		}
		compared++
		if !slices.ContainsFunc(one.Values, func(b []byte) bool { return bytes.Equal(b, p.Measurements[one.Index].Value) }) {
			differ = append(differ, one.Index)
		}
	}
	// The manifest is of 2023, the driver of 2026; eleven of twelve are as then.
	if compared != 12 || !slices.Equal(differ, []int{9}) {
		t.Errorf("%d measurements were compared, %v differ", compared, differ)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(raw(f, hopper(f))))
	f.Add([]byte(raw(f, vector(f, nvidia.LS10, "ls10.txt", "ls10-chain.pem"))))
	good := hopper(f)
	known := [][]byte{good.Report, vector(f, nvidia.LS10, "ls10.txt", "ls10-chain.pem").Report}
	v := verifier1(f, Options{})
	f.Fuzz(func(t *testing.T, evidence []byte) {
		r, err := v.VerifyAll(t.Context(), evidence, bound(good))
		if err != nil {
			return
		}
		e, err := nvidia.ParseEvidence(evidence)
		if err != nil || len(r) != len(e.Devices) {
			t.Fatalf("%d results, %v", len(r), err)
		}
		for _, d := range e.Devices {
			if !slices.ContainsFunc(known, func(b []byte) bool { return bytes.Equal(b, d.Report) }) {
				t.Errorf("accepted: %x", d.Report)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	d := hopper(b)
	evidence := raw(b, d)
	b.Run("warm", func(b *testing.B) {
		v := verifier1(b, Options{})
		for b.Loop() {
			if _, err := v.Verify(b.Context(), evidence, bound(d)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			v := verifier1(b, Options{})
			if _, err := v.Verify(b.Context(), evidence, bound(d)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
