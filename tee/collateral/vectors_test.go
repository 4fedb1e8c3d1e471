package collateral_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
)

func defaultChecks(t testing.TB) collateral.Checks {
	t.Helper()
	checks, err := collateral.DefaultChecks(collateral.DevelopmentRoots{})
	if err != nil {
		t.Fatal(err)
	}
	return checks
}

// What the vendors really issued, as somebody has it in a directory, is
// recognised, passes the verifiers' checks and reaches the verifiers.
func TestVectors(t *testing.T) {
	files := open(t, "testdata/pcs", defaultChecks(t))
	want := map[string]collateral.Status{
		"tcbInfo.json intel-tcb-info:tdx/00a06d080000/standard": collateral.Accepted,
		"enclaveIdentity.json intel-qe-identity:tdx/standard":   collateral.Accepted,
		"pckcrl.der intel-pck-crl:platform":                     collateral.Accepted,
		"rootcrl.der intel-root-crl:sgx":                        collateral.Accepted,
		"milan_ask_ark_asvk.pem amd-chain:Milan/vcek":           collateral.Accepted,
		"milan_ask_ark_asvk.pem amd-chain:Milan/vlek":           collateral.Accepted,
		"ORIGIN":             collateral.Ignored,
		"h100-vbios-rim.xml": collateral.Ignored,
		"test-vcek.der amd-vcek:Milan/" + vectorChip + "/bl03_tee00_snp08_ucode115": collateral.Accepted,
	}
	for _, f := range files.Findings() {
		name := f.File
		if f.Item != nil {
			name += " " + f.Item.String()
		}
		if want[name] != f.Status {
			t.Errorf("%s: expected %q, got %+v", name, want[name], f)
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s: not found", name)
	}
	c, err := collateral.New(collateral.Options{Offline: true, Stores: []collateral.Source{files}, Checks: defaultChecks(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	var _ snpverify.Collateral = c.AMD()
	info, err := c.Intel().TCBInfo(t.Context(), dcap.TDX, [6]byte{0, 0xA0, 0x6D, 0x08})
	if err != nil {
		t.Fatal(err)
	}
	roots, err := dcap.Roots()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := dcap.ParseTCBInfo(info, roots)
	if err != nil || !parsed.NextUpdate.Equal(time.Date(2025, 11, 26, 13, 7, 17, 0, time.UTC)) {
		t.Errorf("%+v, %v", parsed, err)
	}
	if issued := parsed.IssuerChain[0].NotBefore; issued.Year() != 2025 {
		t.Errorf("signed by the certificate of %s", issued)
	}
	if _, err := c.Intel().QEIdentity(t.Context(), dcap.SGX); err == nil {
		t.Error("the identity of another technology's enclave")
	}
}

const vectorChip = "c38427a30d4c7af9d96f7a15b97269825a64cb76a2352ffd5d18115d89ad473f8e8c0bcd9a5d9286612bad4aadfb4426205a3b9e4fea82301135a170e477524e"

// NVIDIA's manifest is named by its file.
func TestRIMVector(t *testing.T) {
	data, err := os.ReadFile("testdata/pcs/h100-vbios-rim.xml")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]collateral.Status{
		"NV_GPU_VBIOS_1010_0200_882_960074001C.xml": collateral.Accepted,
		"NV_GPU_VBIOS_1010_0200_882_960074001D.xml": collateral.Refused,
	} {
		findings := open(t, write(t, t.TempDir(), name, data), defaultChecks(t)).Findings()
		if len(findings) != 1 || findings[0].Status != want {
			t.Errorf("%s: %+v", name, findings)
		}
	}
}

// No bit of AMD's certificate can be changed, nor another chip's or patch
// level's be taken for it.
func TestVCEKVector(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands of signatures")
	}
	der, err := os.ReadFile("testdata/pcs/test-vcek.der")
	if err != nil {
		t.Fatal(err)
	}
	checks := defaultChecks(t)
	store := func(der []byte) bool {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "x"), der, 0o600); err != nil {
			t.Error(err)
		}
		files, err := collateral.Open(dir, checks)
		return err == nil && len(files.Entries()) == 1
	}
	n := 0
	teetest.EachPrefix(der, func(cut []byte) {
		if n++; n%97 == 0 && store(cut) {
			t.Errorf("taken at %d bytes", len(cut))
		}
	})
	for bit := 0; bit < 8*len(der); bit += 61 {
		mutated := bytes.Clone(der)
		mutated[bit/8] ^= 1 << (bit % 8)
		if store(mutated) {
			t.Errorf("taken with bit %d of byte %d flipped", bit%8, bit/8)
		}
	}
	if !store(der) {
		t.Error("refused as it is")
	}
	if err := checks.VCEK(der, snp.Milan, bytes.Repeat([]byte{1}, 64), tcb()); err == nil {
		t.Error("another chip's")
	}
}
