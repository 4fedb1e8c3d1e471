package tdxverify_test

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
)

func ofWorld(t testing.TB, w *dcaptest.World) tdxverify.Options {
	return tdxverify.Options{Now: at(w.Now), DevelopmentRoots: []dcap.DevelopmentRoot{w.Root(t)}}
}

// judge verifies the quote of a world's TD.
func judge(t *testing.T, w *dcaptest.World, o tdxverify.Options, edit func(*tdx.Quote)) (*tee.Result, error) {
	t.Helper()
	quote := dcaptest.TDQuote(t, w.Quoter(t), edit)
	return newVerifier(t, o).Verify(t.Context(), evidence(t, quote, nil), tee.Expected{ReportData: []byte("x"), InitData: []byte{0xc0}})
}

func svn(t *tdx.Quote, launch, current [16]byte) {
	t.TEETCBSVN, t.TEETCBSVN2 = launch, &current
}

func body10(version uint16, tcb [16]byte) func(*tdx.Quote) {
	return func(q *tdx.Quote) { q.Header.Version, q.BodyType, q.TEETCBSVN = version, tdx.BodyTDReport10, tcb }
}

func TestStatuses(t *testing.T) {
	t.Parallel()
	type world = dcaptest.World
	level := func(s dcap.Status) func(*world) {
		return func(w *world) { w.TCBInfo[dcap.TDX].Levels[0].Status = s }
	}
	oldModule := func(q *tdx.Quote) { svn(q, [16]byte{4, 1, 6}, [16]byte{4, 1, 6}) }
	for _, tc := range []struct {
		name       string
		world      func(*world)
		quote      func(*tdx.Quote)
		status     string
		advisories []string
		date       string
	}{
		{"up to date", nil, nil, "UpToDate", nil, "2026-02-11T00:00:00Z"},
		{"version 4", nil, body10(4, [16]byte{5, 0, 6}), "UpToDate", nil, "2026-02-11T00:00:00Z"},
		{"version 5, TD 1.0", nil, body10(5, [16]byte{5, 0, 6}), "UpToDate", nil, "2026-02-11T00:00:00Z"},
		{"version 4, module 1.5", nil, body10(4, [16]byte{6, 1, 6}), "UpToDate", nil, "2026-02-11T00:00:00Z"},
		{"module of TDX 1.0 behind", nil, body10(4, [16]byte{4, 0, 6}), "OutOfDate", []string{"INTEL-SA-00001", "INTEL-SA-00002"}, "2025-08-11T00:00:00Z"},
		{"TDX microcode behind", nil, func(q *tdx.Quote) { svn(q, [16]byte{6, 1, 5}, [16]byte{6, 1, 5}) }, "SWHardeningNeeded", []string{"INTEL-SA-00001"}, "2025-11-11T00:00:00Z"},
		{"other major module", nil, func(q *tdx.Quote) { svn(q, [16]byte{3, 3, 6}, [16]byte{3, 3, 6}) }, "UpToDate", nil, "2026-02-11T00:00:00Z"},
		{"hardening", level(dcap.SWHardeningNeeded), nil, "SWHardeningNeeded", nil, "2026-02-11T00:00:00Z"},
		{"configuration", level(dcap.ConfigurationNeeded), nil, "ConfigurationNeeded", nil, "2026-02-11T00:00:00Z"},
		{"configuration and hardening", level(dcap.ConfigurationAndSWHardeningNeeded), nil, "ConfigurationAndSWHardeningNeeded", nil, "2026-02-11T00:00:00Z"},
		{"out of date", level(dcap.OutOfDate), nil, "OutOfDate", nil, "2026-02-11T00:00:00Z"},
		{"out of date, configuration", level(dcap.OutOfDateConfigurationNeeded), nil, "OutOfDateConfigurationNeeded", nil, "2026-02-11T00:00:00Z"},
		{"PCE behind", func(w *world) { w.PCK.PCESVN = 12 }, nil, "OutOfDate", []string{"INTEL-SA-00001", "INTEL-SA-00002"}, "2025-08-11T00:00:00Z"},
		{"SGX component behind", func(w *world) { w.PCK.Components[1] = 4 }, nil, "SWHardeningNeeded", []string{"INTEL-SA-00001"}, "2025-11-11T00:00:00Z"},
		{"QE behind", func(w *world) { w.QEReport.ISVSVN = 7 }, nil, "OutOfDate", []string{"INTEL-SA-00006"}, "2025-02-11T00:00:00Z"},
		{"QE behind, configuration", func(w *world) { w.QEReport.ISVSVN = 7; level(dcap.ConfigurationNeeded)(w) }, nil, "OutOfDateConfigurationNeeded", []string{"INTEL-SA-00006"}, "2025-02-11T00:00:00Z"},
		{"module behind", nil, oldModule, "OutOfDate", []string{"INTEL-SA-00004"}, "2025-11-11T00:00:00Z"},
		{"module behind, configuration", level(dcap.ConfigurationAndSWHardeningNeeded), oldModule, "OutOfDateConfigurationNeeded", []string{"INTEL-SA-00004"}, "2025-11-11T00:00:00Z"},
		{"relaunch", nil, func(q *tdx.Quote) { q.TEETCBSVN = [16]byte{4, 1, 6} }, "TDRelaunchAdvised", []string{"INTEL-SA-00004"}, "2025-11-11T00:00:00Z"},
		{"relaunch into another major module", nil, func(q *tdx.Quote) { svn(q, [16]byte{4, 1, 6}, [16]byte{3, 3, 6}) }, "TDRelaunchAdvised", []string{"INTEL-SA-00004"}, "2025-11-11T00:00:00Z"},
		{"relaunch, configuration", level(dcap.ConfigurationNeeded), func(q *tdx.Quote) { q.TEETCBSVN = [16]byte{4, 1, 6} }, "TDRelaunchAdvisedConfigurationNeeded", []string{"INTEL-SA-00004"}, "2025-11-11T00:00:00Z"},
		{"processor CA", func(w *world) {
			w.CA, w.PCK.PlatformInstanceID, w.PCK.Configuration, w.PCK.SGXType = dcap.ProcessorCA, nil, nil, dcapquote.SGXStandard
		}, nil, "UpToDate", nil, "2026-02-11T00:00:00Z"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := dcaptest.New(t, dcap.TDX)
			if tc.world != nil {
				tc.world(w)
			}
			r, err := judge(t, w, ofWorld(t, w), tc.quote)
			if err != nil {
				t.Fatal(err)
			}
			if tc.advisories == nil {
				tc.advisories = []string{}
			}
			got := []any{r.Claims["tcb_status"], r.Claims["advisory_ids"], r.Claims["tcb_date"], r.Claims["collateral_expiration_status"]}
			if diff := cmp.Diff([]any{tc.status, tc.advisories, tc.date, "0"}, got); diff != "" {
				t.Error(diff)
			}
			var want []string
			if tc.status != "UpToDate" {
				want = []string{"tdx.tcb tcb_status"}
			}
			if diff := cmp.Diff(want, names(r.Warnings)); diff != "" {
				t.Errorf("warnings: %s", diff)
			}
			for _, f := range r.Warnings {
				for _, id := range tc.advisories {
					if !strings.Contains(f.Help, id) {
						t.Errorf("the warning does not name %s: %s", id, f)
					}
				}
			}
			if !r.Simulated || r.Claims["simulated"] != true || r.Claims["development_root"] != "test" {
				t.Error("a development root counts as Intel's")
			}
		})
	}
}

func TestClaimsOfTwoModules(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	r, err := judge(t, w, ofWorld(t, w), func(q *tdx.Quote) { q.TEETCBSVN = [16]byte{4, 1, 6} })
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"tcb_status_current": "UpToDate", "tcb_date_current": "2026-02-11T00:00:00Z", "advisory_ids_current": []string{},
		"tcb_eval_num": 19, "pck_crl_num": int64(7), "root_ca_crl_num": int64(3), "platform_instance_id": "00000000000000000000000000070809",
		"is_dynamic_platform": false, "is_cached_keys": true, "is_smt_enabled": false, "sgx_type": "Scalable",
		"latest_issue_date": "2026-05-03T12:00:00Z", "earliest_issue_date": "2025-05-04T12:00:00Z", "earliest_expiration_date": "2026-05-31T12:00:00Z",
	} {
		if diff := cmp.Diff(want, r.Claims[name]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	quote, ok := r.Claims["quote"].(map[string]any)
	if !ok || quote["type"] != "0300" || quote["size"] != "88020000" {
		t.Errorf("quote: type %v, size %v", quote["type"], quote["size"])
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	type world = dcaptest.World
	for _, tc := range []struct {
		name  string
		world func(*world)
		quote func(*tdx.Quote)
		want  []string
	}{
		{"revoked level", func(w *world) { w.PCK.Components, w.PCK.PCESVN = [16]byte{2}, 5 }, nil, []string{"tdx.tcb tcb_status"}},
		{"below every level", func(w *world) { w.PCK.Components = [16]byte{1} }, nil, []string{"tdx.tcb tcb_status"}},
		{"unknown status", func(w *world) { w.TCBInfo[dcap.TDX].Levels[0].Status = "Fine" }, nil, []string{"tdx.tcb tcb_status"}},
		{"revoked QE", func(w *world) { w.QEReport.ISVSVN = 5 }, nil, []string{"tdx.tcb tcb_status"}},
		{"QE below every level", func(w *world) { w.QEReport.ISVSVN = 1 }, nil, []string{"tdx.qe_identity qe_report.isv_svn"}},
		{"QE of another signer", func(w *world) { w.QEReport.MRSigner[0]++ }, nil, []string{"tdx.qe_identity qe_report.mr_signer"}},
		{"QE of another product", func(w *world) { w.QEReport.ISVProdID = 1 }, nil, []string{"tdx.qe_identity qe_report.isv_prod_id"}},
		{"QE with MISCSELECT", func(w *world) { w.QEReport.MiscSelect = 1 }, nil, []string{"tdx.qe_identity qe_report.misc_select"}},
		{"QE with another attribute", func(w *world) { w.QEReport.Flags |= dcapquote.AttributeKSS }, nil, []string{"tdx.qe_identity qe_report.attributes"}},
		{"debug QE", func(w *world) { w.QEReport.Flags |= dcapquote.AttributeDebug }, nil, []string{"tdx.qe_identity qe_report.attributes", "tdx.qe_report qe_report.attributes"}},
		{"revoked module", nil, func(q *tdx.Quote) { svn(q, [16]byte{2, 1, 6}, [16]byte{2, 1, 6}) }, []string{"tdx.tcb tcb_status"}},
		{"module revoked since launch", nil, func(q *tdx.Quote) { svn(q, [16]byte{6, 1, 6}, [16]byte{2, 1, 6}) }, []string{"tdx.tcb tcb_status"}},
		{"module below every level", nil, func(q *tdx.Quote) { svn(q, [16]byte{1, 1, 6}, [16]byte{6, 1, 6}) }, []string{"tdx.tcb tcb_status"}},
		{"unknown major module", nil, func(q *tdx.Quote) { q.TEETCBSVN[1] = 2 }, []string{"tdx.module tcb_svn"}},
		{"unknown current module", nil, func(q *tdx.Quote) { q.TEETCBSVN2[1] = 2 }, []string{"tdx.tcb tcb_status"}},
		{"module of another signer", nil, func(q *tdx.Quote) { q.MRSignerSEAM[47] = 1 }, []string{"tdx.module mrsigner_seam"}},
		{"module attributes", nil, func(q *tdx.Quote) { q.SEAMAttributes[7] = 1 }, []string{"tdx.module seam_attributes"}},
		{"TCB info of another family", func(w *world) { w.TCBInfo[dcap.TDX].FMSPC[0]++ }, nil, []string{"tdx.collateral tcb_info.fmspc"}},
		{"TCB info of another PCE", func(w *world) { w.TCBInfo[dcap.TDX].PCEID[0]++ }, nil, []string{"tdx.collateral tcb_info.pceId"}},
		{"TCB info of SGX", func(w *world) { w.TCBInfo[dcap.TDX].ID = "SGX" }, nil, []string{"tdx.collateral tcb_info.id"}},
		{"identity of the SGX QE", func(w *world) { w.Identity[dcap.TDX].ID = "QE" }, nil, []string{"tdx.collateral qe_identity.id"}},
		{"expired TCB info", func(w *world) { w.TCBInfo[dcap.TDX].NextUpdate = w.Now.Add(-time.Second) }, nil, []string{"tdx.collateral tcb_info"}},
		{"expired identity", func(w *world) { w.Identity[dcap.TDX].NextUpdate = w.Now.Add(-time.Second) }, nil, []string{"tdx.collateral qe_identity"}},
		{"expired lists", func(w *world) {
			w.PCKCRL.Next, w.RootCRL.Next = w.Now.Add(-time.Second), w.Now.Add(-time.Second)
		}, nil, []string{"tdx.collateral pck_crl", "tdx.collateral root_ca_crl"}},
		{"TCB info of tomorrow", func(w *world) { w.TCBInfo[dcap.TDX].IssueDate = w.Now.Add(time.Hour) }, nil, []string{"tdx.collateral tcb_info"}},
		{"revoked intermediate", func(w *world) {
			w.RootCRL.Serials = append(w.RootCRL.Serials, w.Authority.Platform.Certificate.SerialNumber)
		}, nil, []string{"tdx.revocation certification_data.intermediate", "tdx.revocation pck_crl.issuer_chain"}},
		{"revoked signing key", func(w *world) {
			w.RootCRL.Serials = append(w.RootCRL.Serials, w.Authority.Signing.Certificate.SerialNumber)
		}, nil, []string{"tdx.revocation qe_identity.issuer_chain", "tdx.revocation tcb_info.issuer_chain"}},
		{"debug", nil, func(q *tdx.Quote) { q.TDAttributes |= tdx.AttributeDebug }, []string{"tdx.debug td_attributes"}},
		{"profiling", nil, func(q *tdx.Quote) { q.TDAttributes |= tdx.AttributePerfProf }, []string{"tdx.debug td_attributes"}},
		{"reserved attribute", nil, func(q *tdx.Quote) { q.TDAttributes |= 1 << 40 }, []string{"tdx.attributes td_attributes"}},
		{"reserved and untrusted attribute", nil, func(q *tdx.Quote) { q.TDAttributes |= 1 << 7 }, []string{"tdx.attributes td_attributes", "tdx.debug td_attributes"}},
		{"unknown feature", nil, func(q *tdx.Quote) { q.XFAM |= 1 << 40 }, []string{"tdx.xfam xfam"}},
		{"no SSE", nil, func(q *tdx.Quote) { q.XFAM &^= 2 }, []string{"tdx.xfam xfam"}},
		{"other report data", nil, func(q *tdx.Quote) { q.ReportData[63] = 1 }, []string{"tdx.report_data report_data"}},
		{"other initdata", nil, func(q *tdx.Quote) { q.MRConfigID[1] = 1 }, []string{"tdx.mr_config_id mr_config_id"}},
		{"all at once", func(w *world) { w.QEReport.ISVProdID = 9; w.PCK.Components = [16]byte{2} }, func(q *tdx.Quote) { q.TDAttributes, q.XFAM = tdx.AttributeDebug, 1; q.ReportData[0] = 0 },
			[]string{"tdx.debug td_attributes", "tdx.qe_identity qe_report.isv_prod_id", "tdx.report_data report_data", "tdx.tcb tcb_status", "tdx.xfam xfam"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := dcaptest.New(t, dcap.TDX)
			if tc.world != nil {
				tc.world(w)
			}
			_, err := judge(t, w, ofWorld(t, w), tc.quote)
			if err == nil {
				t.Fatal("accepted")
			}
			if _, ok := errors.AsType[*tee.Error](err); !ok {
				t.Errorf("expected *tee.Error, got %T", err)
			}
			if diff := cmp.Diff(tc.want, failedChecks(t, err)); diff != "" {
				t.Errorf("%s%v", diff, err)
			}
		})
	}
}

func TestWarningsOfAttributes(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	o := ofWorld(t, w)
	o.AllowDebug = true
	r, err := judge(t, w, o, func(q *tdx.Quote) { q.TDAttributes = tdx.AttributeDebug | tdx.AttributeMigratable })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"tdx.attributes td_attributes", "tdx.debug td_attributes"}, names(r.Warnings)); diff != "" || len(r.Warnings) != 3 {
		t.Errorf("%s%v", diff, r.Warnings)
	}
}

func TestRevokedPCK(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	p := w.Quoter(t)
	data := evidence(t, dcaptest.TDQuote(t, p, nil), nil)
	source := &swap{w.Collateral(t)}
	o := ofWorld(t, w)
	o.DevelopmentRoots[0].Collateral = source
	v := newVerifier(t, o)
	want := tee.Expected{ReportData: []byte("x")}
	for range 2 { // the second time from memory
		if _, err := v.Verify(t.Context(), data, want); err != nil {
			t.Fatal(err)
		}
	}
	// A newer list is heeded although the chain is known.
	w.PCKCRL.Number, w.PCKCRL.Serials = 8, []*big.Int{p.PCK.Certificate.SerialNumber}
	source.Collateral = w.Collateral(t)
	_, err := v.Verify(t.Context(), data, want)
	if diff := cmp.Diff([]string{"tdx.revocation certification_data.pck"}, failedChecks(t, err)); diff != "" {
		t.Error(diff)
	}
}

type swap struct{ dcap.Collateral }

func TestMissingCollateral(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	data := evidence(t, dcaptest.TDQuote(t, w.Quoter(t), nil), nil)
	all := []string{"tdx.collateral pck_crl", "tdx.collateral qe_identity", "tdx.collateral root_ca_crl", "tdx.collateral tcb_info"}
	none := ofWorld(t, w)
	none.DevelopmentRoots[0].Collateral = nil
	broken := ofWorld(t, w)
	c := w.Collateral(t)
	for k, d := range c.TCBInfos {
		// Whatever the signature's last hexadecimal digit is, it is another one.
		last := len(d.Body) - 3
		digit := byte('0')
		if d.Body[last] == digit {
			digit = '1'
		}
		d.Body = append(append(d.Body[:last:last], digit), `"}`...)
		c.TCBInfos[k] = d
	}
	c.Root = c.Root[1:]
	broken.DevelopmentRoots[0].Collateral = c
	empty := ofWorld(t, w)
	empty.DevelopmentRoots[0].Collateral = new(dcap.Static)
	for name, tc := range map[string]struct {
		options tdxverify.Options
		want    []string
	}{"none": {none, all}, "empty": {empty, all}, "broken": {broken, []string{"tdx.collateral root_ca_crl", "tdx.collateral tcb_info"}}} {
		v := newVerifier(t, tc.options)
		_, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("x")})
		u, ok := errors.AsType[*tee.UnavailableError](err)
		if !ok {
			t.Fatalf("%s: expected *tee.UnavailableError, got %v", name, err)
		}
		if diff := cmp.Diff(tc.want, failedChecks(t, err)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if e, ok := errors.AsType[*tee.CollateralError](u); !ok || e.Item == "" {
			t.Errorf("%s: no cause: %v", name, err)
		}
		tc.options.AllowMissingCollateral = true
		r, err := newVerifier(t, tc.options).Verify(t.Context(), data, tee.Expected{ReportData: []byte("x")})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(tc.want, names(r.Warnings)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		for _, claim := range []string{"tcb_status", "collateral_expiration_status"} {
			if r.Claims[claim] != nil {
				t.Errorf("%s: claim %s is %v without the documents", name, claim, r.Claims[claim])
			}
		}
		// What speaks against the evidence is told with what is lacking.
		_, err = v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("y")})
		if diff := cmp.Diff(append(tc.want, "tdx.report_data report_data"), failedChecks(t, err)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestExpiredCollateralAllowed(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	o := ofWorld(t, w)
	o.Now, o.AllowMissingCollateral = at(w.Now.AddDate(0, 2, 0)), true
	r, err := judge(t, w, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Claims["collateral_expiration_status"] != "1" || r.Claims["tcb_status"] != "UpToDate" {
		t.Errorf("got %v, %v", r.Claims["collateral_expiration_status"], r.Claims["tcb_status"])
	}
	if diff := cmp.Diff([]string{"tdx.collateral pck_crl", "tdx.collateral qe_identity", "tdx.collateral tcb_info"}, names(r.Warnings)); diff != "" {
		t.Error(diff)
	}
}

// To take what is stale is not to take what is missing.
func TestStaleCollateralAllowed(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	o := ofWorld(t, w)
	o.Now, o.AllowStaleCollateral = at(w.Now.AddDate(0, 2, 0)), true
	r, err := judge(t, w, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Claims["collateral_expiration_status"] != "1" || len(r.Warnings) != 3 {
		t.Errorf("got %v, %v", r.Claims["collateral_expiration_status"], names(r.Warnings))
	}
	for name, lose := range map[string]func(*dcap.Static){
		"TCB info": func(s *dcap.Static) { s.TCBInfos = nil }, "QE identity": func(s *dcap.Static) { s.QEIdentities = nil },
		"PCK CRL": func(s *dcap.Static) { s.PCKCRLs = nil }, "root CRL": func(s *dcap.Static) { s.Root = nil },
	} {
		s := w.Collateral(t)
		lose(s)
		o.DevelopmentRoots[0].Collateral = s
		_, err := judge(t, w, o, nil)
		if _, ok := errors.AsType[*tee.UnavailableError](err); !ok {
			t.Errorf("without %s: expected *tee.UnavailableError, got %v", name, err)
		}
	}
}

func TestExpiredChain(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	data := evidence(t, dcaptest.TDQuote(t, w.Quoter(t), nil), nil)
	clock := w.Now
	o := ofWorld(t, w)
	o.Now, o.AllowMissingCollateral = func() time.Time { return clock }, true
	v := newVerifier(t, o)
	if _, err := v.Verify(t.Context(), data, anyReportData()); err != nil {
		t.Fatal(err)
	}
	for _, clock = range []time.Time{w.Now.AddDate(11, 0, 0), w.Now.AddDate(-2, 0, 0)} {
		_, err := v.Verify(t.Context(), data, anyReportData())
		if diff := cmp.Diff([]string{"tdx.certificate certification_data"}, failedChecks(t, err)); diff != "" {
			t.Errorf("at %s: %s%v", clock, diff, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	ctx, cancel := context.WithCancel(t.Context())
	o := ofWorld(t, w)
	o.DevelopmentRoots[0].Collateral = &impatient{cancel: cancel, Collateral: w.Collateral(t)}
	v := newVerifier(t, o)
	_, err := v.Verify(ctx, evidence(t, dcaptest.TDQuote(t, w.Quoter(t), nil), nil), anyReportDataOf("x"))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("expected %v, got %v", context.Canceled, err)
	}
}

type impatient struct {
	cancel context.CancelFunc
	dcap.Collateral
}

func (i *impatient) RootCRL(ctx context.Context) ([]byte, error) {
	i.cancel()
	return nil, fmt.Errorf("fetch: %w", ctx.Err())
}
