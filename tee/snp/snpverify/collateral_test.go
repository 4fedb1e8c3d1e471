package snpverify

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/snp"
)

// fakeCollateral answers as its functions do.
type fakeCollateral struct {
	vcek  func(g snp.Generation, chipID []byte, tcb snp.TCB) ([]byte, error)
	crl   func(g snp.Generation, s snp.Signer) ([]byte, error)
	calls atomic.Int32
}

func (f *fakeCollateral) VCEK(_ context.Context, g snp.Generation, chipID []byte, tcb snp.TCB) ([]byte, error) {
	f.calls.Add(1)
	return f.vcek(g, chipID, tcb)
}

func (f *fakeCollateral) CRL(_ context.Context, g snp.Generation, s snp.Signer) ([]byte, error) {
	f.calls.Add(1)
	return f.crl(g, s)
}

func TestFetchedCertificate(t *testing.T) {
	t.Parallel()
	r, authority, cert, key := turin(t)
	data := signReport(t, r, key)
	source := &fakeCollateral{vcek: func(g snp.Generation, chipID []byte, tcb snp.TCB) ([]byte, error) {
		if g != snp.Turin || !bytes.Equal(chipID, r.ChipID[:8]) || !tcb.Equal(r.ReportedTCB) {
			t.Errorf("asked for %s, %x, %s", g, chipID, tcb)
		}
		return cert.Raw, nil
	}}
	v := newVerifier(t, Options{Now: at("2026-02-01"), DevelopmentRoots: []DevelopmentRoot{authority.root()}, Collateral: source})
	if _, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("bound")}); err != nil {
		t.Error(err)
	}

	// Another chip's certificate speaks against the evidence.
	other := vector(t, "test-vcek.der")
	v = newVerifier(t, Options{Now: at("2026-02-01"), DevelopmentRoots: []DevelopmentRoot{authority.root()}, Collateral: &fakeCollateral{
		vcek: func(snp.Generation, []byte, snp.TCB) ([]byte, error) { return other, nil },
	}})
	_, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("bound")})
	if diff := cmp.Diff([]string{"snp.chain", "snp.signature", "snp.tcb", "snp.chip_id"}, failed(t, err)); diff != "" {
		t.Error(diff)
	}

	// A masked chip cannot be asked for.
	masked := r
	masked.ChipID = [64]byte{}
	_, err = v.Verify(t.Context(), signReport(t, masked, key), tee.Expected{ReportData: []byte("bound")})
	if diff := cmp.Diff([]string{"snp.chain"}, lacking(t, err)); diff != "" {
		t.Error(diff)
	}
}

// A report of version 2 does not say whose it is: each generation is asked
// until one knows the chip.
func TestFetchedForVersion2(t *testing.T) {
	t.Parallel()
	report := vector(t, "test-report.bin")
	data, want := evidenceOf(t, report), tee.Expected{ReportData: report[0x50:0x90]}
	unknown := func(item string) error {
		return &tee.CollateralError{Item: item, Reason: tee.CollateralUnknown}
	}
	for _, tc := range []struct {
		name   string
		answer func(g snp.Generation) ([]byte, error)
		reason tee.CollateralReason // "": genuine
		asked  int32
	}{
		{"milan", func(snp.Generation) ([]byte, error) { return vector(t, "test-vcek.der"), nil }, "", 1},
		{"nobody's", func(g snp.Generation) ([]byte, error) { return nil, unknown(string(g)) }, tee.CollateralUnknown, 2},
		{"throttled", func(g snp.Generation) ([]byte, error) {
			return nil, &tee.CollateralError{Item: string(g), Reason: tee.CollateralThrottled}
		}, tee.CollateralThrottled, 1},
		{"unreachable later", func(g snp.Generation) ([]byte, error) {
			if g == snp.Milan {
				return nil, unknown("milan")
			}
			return nil, errors.New("no route")
		}, tee.CollateralUnreachable, 2},
	} {
		source := &fakeCollateral{vcek: func(g snp.Generation, _ []byte, _ snp.TCB) ([]byte, error) { return tc.answer(g) }}
		v := newVerifier(t, Options{Now: at("2024-06-01"), Collateral: source})
		_, err := v.Verify(t.Context(), data, want)
		if tc.reason == "" {
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
		} else if c, ok := errors.AsType[*tee.CollateralError](err); !ok || c.Reason != tc.reason {
			t.Errorf("%s: got %v", tc.name, err)
		} else if diff := cmp.Diff([]string{"snp.chain"}, lacking(t, err)); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
		if n := source.calls.Load(); n != tc.asked {
			t.Errorf("%s: asked %d times, want %d", tc.name, n, tc.asked)
		}
	}

	// The end of the context is no judgement.
	ctx, cancel := context.WithCancel(t.Context())
	v := newVerifier(t, Options{Now: at("2024-06-01"), Collateral: &fakeCollateral{
		vcek: func(snp.Generation, []byte, snp.TCB) ([]byte, error) { cancel(); return nil, ctx.Err() },
	}})
	for range 2 {
		if _, err := v.Verify(ctx, data, want); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	}
}

func TestCheckVCEK(t *testing.T) {
	t.Parallel()
	der := vector(t, "turin-other-vcek.der")
	c, err := parseChipCertificate(der, snp.SignerVCEK)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.hwid) != 8 || c.tcb.FMC == nil || c.generation() != snp.Turin {
		t.Errorf("the Turin certificate reads as chip %x, %s, %q", c.hwid, c.tcb, c.product)
	}
	if err := CheckVCEK(der, snp.Turin, c.hwid, c.tcb); err != nil {
		t.Error(err)
	}
	newer := c.tcb
	newer.Microcode++
	noFMC := c.tcb
	noFMC.FMC = nil
	for name, err := range map[string]error{
		"another generation": CheckVCEK(der, snp.Genoa, c.hwid, c.tcb),
		"no generation":      CheckVCEK(der, "", c.hwid, c.tcb),
		"another chip":       CheckVCEK(der, snp.Turin, make([]byte, 8), c.tcb),
		"padded chip":        CheckVCEK(der, snp.Turin, append(slices.Clone(c.hwid), make([]byte, 56)...), c.tcb),
		"another level":      CheckVCEK(der, snp.Turin, c.hwid, newer),
		"no FMC":             CheckVCEK(der, snp.Turin, c.hwid, noFMC),
		"a VLEK":             CheckVCEK(vector(t, "test-vlek.der"), snp.Milan, c.hwid, c.tcb),
		"changed":            CheckVCEK(append(slices.Clone(der[:len(der)-1]), der[len(der)-1]^1), snp.Turin, c.hwid, c.tcb),
		"nothing":            CheckVCEK(nil, snp.Turin, c.hwid, c.tcb),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, g := range map[string]snp.Generation{"test": snp.Milan, "azure": snp.Milan, "google": snp.Milan, "azure-genoa": snp.Genoa, "genoa-v5": snp.Genoa, "turin": snp.Turin} {
		report, err := snp.DecodeReport(vector(t, name+"-report.bin"))
		if err != nil {
			t.Fatal(err)
		}
		id := report.ChipID[:]
		if g == snp.Turin {
			id = id[:8]
		}
		if err := CheckVCEK(vector(t, name+"-vcek.der"), g, id, report.ReportedTCB); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// crl is a revocation list of the authority's root.
func (c *ca) crl(t testing.TB, from, to time.Time, issuer *x509.Certificate, revoked ...int64) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: to, SignatureAlgorithm: x509.SHA384WithRSAPSS}
	for _, serial := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: from})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, issuer, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Development roots have no lists; the check itself is the same.
func TestRevocation(t *testing.T) {
	t.Parallel()
	authority, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	r, err := loadDevelopment(authority.root())
	if err != nil {
		t.Fatal(err)
	}
	e := endorsement{generation: snp.Milan, root: r}
	now, month := at("2026-02-01"), 30*24*time.Hour
	current := func(revoked ...int64) []byte {
		return authority.crl(t, now().Add(-month), now().Add(month), authority.ark, revoked...)
	}
	changed := current()
	changed[len(changed)-1] ^= 1
	unreachable := errors.New("no route")
	for _, tc := range []struct {
		name         string
		body         []byte
		err          error
		signer       snp.Signer
		fail, lack   []string
		status       string
		allowedFails bool // stays a failure where missing collateral is allowed
	}{
		{"nothing revoked", current(), nil, snp.SignerVCEK, nil, nil, "0", false},
		{"another revoked", current(77), nil, snp.SignerVCEK, nil, nil, "0", false},
		{"the VLEKs' revoked", current(3), nil, snp.SignerVCEK, nil, nil, "0", false},
		{"intermediate revoked", current(77, 2), nil, snp.SignerVCEK, []string{"snp.revocation"}, nil, "0", true},
		{"VLEK intermediate revoked", current(3), nil, snp.SignerVLEK, []string{"snp.revocation"}, nil, "0", true},
		{"out of date", authority.crl(t, now().Add(-2*month), now().Add(-month), authority.ark), nil, snp.SignerVCEK, []string{"snp.collateral"}, nil, "1", false},
		{"from the future", authority.crl(t, now().Add(month), now().Add(2*month), authority.ark), nil, snp.SignerVCEK, []string{"snp.collateral"}, nil, "1", false},
		{"out of date, revoked", authority.crl(t, now().Add(-2*month), now().Add(-month), authority.ark, 2), nil, snp.SignerVCEK, []string{"snp.revocation", "snp.collateral"}, nil, "1", true},
		{"another issuer", authority.crl(t, now().Add(-month), now().Add(month), authority.ask), nil, snp.SignerVCEK, nil, []string{"snp.collateral"}, "", false},
		{"bad signature", changed, nil, snp.SignerVCEK, nil, []string{"snp.collateral"}, "", false},
		{"no list", []byte("x"), nil, snp.SignerVCEK, nil, []string{"snp.collateral"}, "", false},
		{"huge", make([]byte, maxCRL+1), nil, snp.SignerVCEK, nil, []string{"snp.collateral"}, "", false},
		{"not to be had", nil, unreachable, snp.SignerVCEK, nil, []string{"snp.collateral"}, "", false},
	} {
		source := &fakeCollateral{crl: func(g snp.Generation, s snp.Signer) ([]byte, error) {
			if g != snp.Milan || s != tc.signer {
				t.Errorf("%s: asked for %s %s", tc.name, g, s)
			}
			return tc.body, tc.err
		}}
		for _, allow := range []bool{false, true} {
			v := newVerifier(t, Options{Now: now, Collateral: source, AllowMissingCollateral: allow})
			for range 2 { // the second time the list is known
				l := checks.New(tee.SNP, allow)
				if got := v.checkRevocation(t.Context(), l, e, tc.signer); got != tc.status {
					t.Errorf("%s: status: got %q, want %q", tc.name, got, tc.status)
				}
				err := l.Err()
				switch {
				case allow && !tc.allowedFails:
					if want := append(tc.fail, tc.lack...); err != nil || !slices.Equal(names(l.Warnings()), want) {
						t.Errorf("%s: allowed: got %v, warnings %v", tc.name, err, l.Warnings())
					}
				case allow:
					if got := failed(t, err); !slices.Equal(got, []string{"snp.revocation"}) {
						t.Errorf("%s: allowed: got %v", tc.name, err)
					}
				case tc.lack != nil:
					if got := lacking(t, err); !slices.Equal(got, tc.lack) {
						t.Errorf("%s: got %v", tc.name, got)
					}
				default:
					if got := failed(t, err); !slices.Equal(got, tc.fail) {
						t.Errorf("%s: got %v, want %v", tc.name, got, tc.fail)
					}
				}
			}
		}
	}
}

// A chip that is known is looked up in each new list.
func TestRevocationIsNotRemembered(t *testing.T) {
	t.Parallel()
	authority, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	now := at("2026-02-01")
	report := vector(t, "test-report.bin")
	data := evidenceOf(t, report, snp.Certificate{Type: snp.CertVCEK, Data: vector(t, "test-vcek.der")})
	want := tee.Expected{ReportData: report[0x50:0x90]}
	source := &fakeCollateral{}
	v := newVerifier(t, Options{Now: now, Collateral: source, CheckRevocation: true})
	amd, err := loadAMD(snp.Milan)
	if err != nil {
		t.Fatal(err)
	}
	// Only AMD can sign AMD's list: a root with another key stands in for theirs.
	stand := *amd
	stand.ark = authority.ark
	v.amd[snp.Milan] = func() (*root, error) { return &stand, nil }
	for _, tc := range []struct {
		revoked []int64
		want    []string
	}{{nil, nil}, {[]int64{amd.ask.SerialNumber.Int64()}, []string{"snp.revocation"}}, {nil, nil}} {
		list := authority.crl(t, now().AddDate(0, -1, 0), now().AddDate(0, 1, 0), authority.ark, tc.revoked...)
		source.crl = func(snp.Generation, snp.Signer) ([]byte, error) { return list, nil }
		r, err := v.Verify(t.Context(), data, want)
		if diff := cmp.Diff(tc.want, failed(t, err)); diff != "" {
			t.Errorf("revoked %v: %s", tc.revoked, diff)
		}
		if err == nil && r.Claims["collateral_expiration_status"] != "0" {
			t.Errorf("claim collateral_expiration_status: got %v", r.Claims["collateral_expiration_status"])
		}
	}

	// With a list that cannot be had, evidence is not judged.
	v = newVerifier(t, Options{Now: now, CheckRevocation: true})
	_, err = v.Verify(t.Context(), data, want)
	if diff := cmp.Diff([]string{"snp.collateral"}, lacking(t, err)); diff != "" {
		t.Error(diff)
	}
	v = newVerifier(t, Options{Now: now, CheckRevocation: true, AllowMissingCollateral: true})
	r, err := v.Verify(t.Context(), data, want)
	if err != nil || !slices.Equal(names(r.Warnings), []string{"snp.collateral"}) {
		t.Errorf("allowed: got %v, %v", r, err)
	}
}

func TestCheckCRL(t *testing.T) {
	t.Parallel()
	authority, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	der := authority.crl(t, at("2026-01-01")(), at("2027-01-01")(), authority.ark)
	for name, err := range map[string]error{
		"a stranger's": second(CheckCRL(der, snp.Milan, snp.SignerVCEK)),
		"generation":   second(CheckCRL(der, "Rome", snp.SignerVCEK)),
		"signer":       second(CheckCRL(der, snp.Milan, snp.SignerNone)),
		"nothing":      second(CheckCRL(nil, snp.Milan, snp.SignerVCEK)),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// Signed in order, but with a weaker hash.
	weak, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: at("2026-01-01")(), NextUpdate: at("2027-01-01")(), SignatureAlgorithm: x509.SHA256WithRSA,
	}, authority.ark, authority.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&root{ark: authority.ark}).checkCRL(weak); err == nil {
		t.Error("an algorithm other than AMD's was taken")
	}
	if _, err := (&root{ark: authority.ark}).checkCRL(der); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

func FuzzCheckCRL(f *testing.F) {
	authority, err := testCA()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(authority.crl(f, at("2026-01-01")(), at("2027-01-01")(), authority.ark, 7))
	r := &root{ark: authority.ark}
	f.Fuzz(func(t *testing.T, der []byte) {
		list, err := r.checkCRL(der)
		if (list == nil) == (err == nil) {
			t.Fatalf("got list %v and error %v", list, err)
		}
	})
}
