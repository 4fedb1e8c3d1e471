package snpverify

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/snp"
)

// What operators may demand beyond what is always checked.
func TestOptions(t *testing.T) {
	t.Parallel()
	id, author, other := [48]byte{1}, [48]byte{2}, [48]byte{3}
	family, image := [16]byte{4}, [16]byte{5}
	for _, tc := range []struct {
		name    string
		change  func(*snp.Report)
		options Options
		want    []string
		warn    []string
	}{
		{"VMPL accepted", func(r *snp.Report) { r.VMPL = 2 }, Options{VMPL: []uint32{1, 2}}, nil, nil},
		{"VMPL 0 not accepted", nil, Options{VMPL: []uint32{1, 2}}, []string{"snp.vmpl"}, nil},
		{"asked for by the host", func(r *snp.Report) { r.VMPL = 1<<32 - 1 }, Options{VMPL: []uint32{0, 1, 2, 3}}, []string{"snp.vmpl"}, nil},
		{"debug allowed", func(r *snp.Report) { r.Policy |= snp.PolicyDebug }, Options{AllowDebug: true}, nil, []string{"snp.debug"}},
		{"migration allowed", func(r *snp.Report) { r.Policy |= snp.PolicyMigrateMA; r.ReportIDMA = [32]byte{1} }, Options{AllowMigration: true}, nil, []string{"snp.migration"}},
		{"SMT forbidden", nil, Options{ForbidPolicy: snp.PolicySMT, ForbidPlatform: snp.PlatformSMT}, nil, nil},
		{"SMT allowed though forbidden", func(r *snp.Report) { r.Policy |= snp.PolicySMT }, Options{ForbidPolicy: snp.PolicySMT}, []string{"snp.policy"}, nil},
		{"SMT on though forbidden", func(r *snp.Report) { r.PlatInfo |= snp.PlatformSMT }, Options{ForbidPlatform: snp.PlatformSMT}, []string{"snp.platform"}, nil},
		{"flags there", func(r *snp.Report) {
			r.Policy |= snp.PolicySingleSocket | snp.PolicyCiphertextHiding
			r.PlatInfo = snp.PlatformAliasCheck | snp.PlatformCiphertextHiding
		}, Options{RequirePolicy: snp.PolicySingleSocket | snp.PolicyCiphertextHiding, RequirePlatform: snp.PlatformAliasCheck}, nil, nil},
		{"flags missing", func(r *snp.Report) { r.Policy |= snp.PolicySingleSocket }, Options{
			RequirePolicy: snp.PolicySingleSocket | snp.PolicyMemAES256XTS | snp.PolicyRAPLDisable, RequirePlatform: snp.PlatformAliasCheck,
		}, []string{"snp.platform", "snp.policy"}, nil},
		{"unknown bits", func(r *snp.Report) { r.Policy |= 1 << 30; r.PlatInfo |= 1 << 8; r.KeyInfo |= 1 << 9 }, Options{}, []string{"snp.format", "snp.format", "snp.format"}, nil},
		{"unknown platform allowed", func(r *snp.Report) { r.PlatInfo |= 1 << 8 }, Options{AllowUnknownPlatform: true}, nil, []string{"snp.format"}},
		{"unknown policy not allowed", func(r *snp.Report) { r.Policy |= 1 << 30 }, Options{AllowUnknownPlatform: true}, []string{"snp.format"}, nil},
		{"key masked", func(r *snp.Report) { r.KeyInfo |= snp.KeyInfoMaskChipKey }, Options{}, nil, nil},
		{"firmware new enough", func(r *snp.Report) { r.Current = snp.FirmwareVersion{Major: 1, Minor: 58}; r.Committed = r.Current }, Options{MinimumFirmware: snp.FirmwareVersion{Major: 1, Minor: 57, Build: 200}}, nil, nil},
		{"firmware too old", func(r *snp.Report) {
			r.Current = snp.FirmwareVersion{Major: 1, Minor: 58}
			r.Committed = snp.FirmwareVersion{Major: 1, Minor: 57}
		}, Options{MinimumFirmware: snp.FirmwareVersion{Major: 1, Minor: 57, Build: 2}}, []string{"snp.firmware"}, nil},
		{"mitigations", nil, Options{RequireMitigations: 0}, nil, nil},
		{"one mitigation missing", func(r *snp.Report) { *r.LaunchMitigation, *r.CurrentMitigation = 1, 3 }, Options{RequireMitigations: 2}, []string{"snp.mitigation"}, nil},
		{"no mitigation vectors", func(r *snp.Report) { r.Version, r.LaunchMitigation, r.CurrentMitigation = 4, nil, nil }, Options{RequireMitigations: 2}, []string{"snp.mitigation", "snp.mitigation"}, nil},
		{"ID block", func(r *snp.Report) {
			r.IDKeyDigest, r.AuthorKeyDigest, r.KeyInfo, r.FamilyID, r.ImageID, r.GuestSVN = id, author, snp.KeyInfoAuthorKey, family, image, 7
		}, Options{IDBlock: &IDBlock{IDKeyDigests: [][48]byte{other, id}, AuthorKeyDigests: [][48]byte{author}, FamilyID: &family, ImageID: &image, MinGuestSVN: 7}}, nil, nil},
		{"no ID block", nil, Options{IDBlock: &IDBlock{IDKeyDigests: [][48]byte{id}, AuthorKeyDigests: [][48]byte{author}, FamilyID: &family, ImageID: &image, MinGuestSVN: 7}}, slices.Repeat([]string{"snp.id_block"}, 5), nil},
		{"author without its bit", func(r *snp.Report) { r.AuthorKeyDigest = author }, Options{IDBlock: &IDBlock{AuthorKeyDigests: [][48]byte{author}}}, []string{"snp.id_block"}, nil},
		{"empty ID block", nil, Options{IDBlock: &IDBlock{}}, nil, nil},
		{"FMC too old", nil, Options{MinimumTCB: map[snp.Generation]MinimumTCB{snp.Turin: {Launch: snp.TCB{FMC: ptr[uint8](2)}}}}, []string{"snp.minimum_tcb"}, nil},
		{"FMC new enough", nil, Options{MinimumTCB: map[snp.Generation]MinimumTCB{snp.Turin: EveryTCB(snp.TCB{FMC: ptr[uint8](1), Microcode: 200})}}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r, authority, cert, key := turin(t)
			if tc.change != nil {
				tc.change(&r)
			}
			tc.options.Now, tc.options.DevelopmentRoots = at("2026-02-01"), []DevelopmentRoot{authority.root()}
			v := newVerifier(t, tc.options)
			result, err := v.Verify(t.Context(), signReport(t, r, key, snp.Certificate{Type: snp.CertVCEK, Data: cert.Raw}), tee.Expected{ReportData: []byte("bound")})
			if diff := cmp.Diff(tc.want, failed(t, err)); diff != "" {
				t.Fatalf("%s\n%v", diff, err)
			}
			if result != nil {
				if diff := cmp.Diff(tc.warn, names(result.Warnings)); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// A VLEK is the provider's: no chip, another intermediate.
func TestVLEK(t *testing.T) {
	t.Parallel()
	authority, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	tcb := snp.TCB{Bootloader: 4, SNP: 24, Microcode: 219}
	cert, key := authority.chip(t, "SEV-VLEK", vlekExtensions(t, tcb, "cloud.example"))
	base := snp.Report{
		Version: 3, Policy: snp.PolicyReserved1, SigAlgo: snp.SigECDSAP384SHA384, KeyInfo: uint32(snp.SignerVLEK) << 2,
		CurrentTCB: tcb, ReportedTCB: tcb, CommittedTCB: tcb, LaunchTCB: tcb,
		CPUIDFamily: ptr[uint8](0x19), CPUIDModel: ptr[uint8](1), CPUIDStepping: ptr[uint8](1), ReportData: [64]byte{9},
	}
	vcekOnly := authority.root()
	vcekOnly.PEM = []byte(string(first(vcekOnly.PEM)) + string(first(vcekOnly.PEM[len(first(vcekOnly.PEM)):])))
	for name, tc := range map[string]struct {
		change func(*snp.Report)
		root   DevelopmentRoot
		want   []string
	}{
		"genuine":                  {func(*snp.Report) {}, authority.root(), nil},
		"chip named":               {func(r *snp.Report) { r.ChipID[5] = 1 }, authority.root(), nil},
		"another level":            {func(r *snp.Report) { r.ReportedTCB.SNP++ }, authority.root(), []string{"snp.tcb"}},
		"a root without VLEKs":     {func(*snp.Report) {}, vcekOnly, []string{"snp.chain"}},
		"as a VCEK":                {func(r *snp.Report) { r.KeyInfo = 0; r.ChipID[0] = 1 }, authority.root(), []string{"snp.certificate"}},
		"a processor AMD has none": {func(r *snp.Report) { r.CPUIDFamily = ptr[uint8](0x17) }, authority.root(), []string{"snp.generation"}},
	} {
		r := base
		tc.change(&r)
		kind := snp.CertVLEK
		if r.KeyInfo == 0 {
			kind = snp.CertVCEK
		}
		v := newVerifier(t, Options{Now: at("2026-02-01"), DevelopmentRoots: []DevelopmentRoot{tc.root}})
		result, err := v.Verify(t.Context(), signReport(t, r, key, snp.Certificate{Type: kind, Data: cert.Raw}), tee.Expected{ReportData: []byte{9}})
		if diff := cmp.Diff(tc.want, failed(t, err)); diff != "" {
			t.Errorf("%s: %s\n%v", name, diff, err)
		}
		if result != nil && (result.Claims["csp_id"] != "cloud.example" || result.Claims["signer"] != "VLEK") {
			t.Errorf("%s: got %v", name, result.Claims)
		}
	}
}

// A report can be verified on its own, by those that bind it otherwise.
func TestVerifyReport(t *testing.T) {
	t.Parallel()
	report := vector(t, "azure-report.bin")
	v := newVerifier(t, Options{Now: at("2024-06-01")})
	l := checks.New(tee.AzureSNPVTPM, false)
	r, claims, simulated := v.VerifyReport(t.Context(), l, report, []snp.Certificate{{Type: snp.CertVCEK, Data: vector(t, "azure-vcek.der")}})
	if err := l.Err(); err != nil || r == nil || claims["generation"] != "Milan" || simulated {
		t.Errorf("got %v, %v, %t, %v", r, claims, simulated, err)
	}
	for _, bad := range [][]byte{nil, report[:100], make([]byte, snp.ReportSize), append(slices.Clone(report), 0)} {
		l := checks.New(tee.AzureSNPVTPM, false)
		r, _, _ := v.VerifyReport(t.Context(), l, bad, nil)
		if diff := cmp.Diff([]string{"snp.format"}, failed(t, l.Err())); r != nil || diff != "" {
			t.Errorf("%d bytes: %v, %s", len(bad), r, diff)
		}
	}
}
