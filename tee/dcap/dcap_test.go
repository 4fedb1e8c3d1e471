package dcap_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapmint"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/internal/teetest"
)

func roots(t testing.TB, development ...dcap.DevelopmentRoot) *dcap.RootSet {
	t.Helper()
	r, err := dcap.Roots(development...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// documents are the real ones, with what has to become of them.
func documents(t testing.TB) map[string]dcap.Signed {
	old, reissued := dcaptest.File(t, "chain_signing_2018.pem"), dcaptest.File(t, "chain_signing_2025.pem")
	return map[string]dcap.Signed{
		"tcb_info_tdx_50806f000000_2023-06.json": {Body: dcaptest.File(t, "tcb_info_tdx_50806f000000_2023-06.json"), IssuerChain: old},
		"tcb_info_tdx_90c06f000000_2026-02.json": {Body: dcaptest.File(t, "tcb_info_tdx_90c06f000000_2026-02.json"), IssuerChain: reissued},
		"tcb_info_tdx_00a06d080000_2025-10.json": {Body: dcaptest.File(t, "tcb_info_tdx_00a06d080000_2025-10.json"), IssuerChain: reissued},
		"qe_identity_tdx_2023-06.json":           {Body: dcaptest.File(t, "qe_identity_tdx_2023-06.json"), IssuerChain: old},
		"qe_identity_tdx_2025-10.json":           {Body: dcaptest.File(t, "qe_identity_tdx_2025-10.json"), IssuerChain: reissued},
	}
}

func TestRealDocuments(t *testing.T) {
	t.Parallel()
	r := roots(t)
	docs := documents(t)
	info, err := dcap.ParseTCBInfo(docs["tcb_info_tdx_90c06f000000_2026-02.json"], r)
	if err != nil {
		t.Fatal(err)
	}
	if info.ID != "TDX" || dcap.FMSPCText(info.FMSPC) != "90C06F000000" || info.EvaluationDataNumber != 18 || len(info.Levels) != 3 || len(info.Modules) != 2 || info.Module == nil || info.Root.Development {
		t.Errorf("got %+v", info)
	}
	want := dcap.TCBLevel{
		SGX: [16]byte{2, 2, 2, 2, 3, 1, 0, 5}, TDX: [16]byte{5, 0, 2}, PCESVN: 13, Date: time.Date(2024, 3, 13, 0, 0, 0, 0, time.UTC), Status: dcap.OutOfDate,
		Advisories: []string{"INTEL-SA-01036", "INTEL-SA-01079", "INTEL-SA-01099", "INTEL-SA-01103", "INTEL-SA-01111"},
	}
	if diff := cmp.Diff(want, info.Levels[1]); diff != "" {
		t.Error(diff)
	}
	identity, err := dcap.ParseQEIdentity(docs["qe_identity_tdx_2025-10.json"], r)
	if err != nil {
		t.Fatal(err)
	}
	if identity.ID != "TD_QE" || identity.ISVProdID != 2 || len(identity.Levels) != 1 || identity.Levels[0].ISVSVN != 4 || identity.Attributes != [16]byte{0x11} || identity.MRSigner[0] != 0xdc {
		t.Errorf("got %+v", identity)
	}
	for name, doc := range docs {
		_, err := dcap.ParseTCBInfo(doc, r)
		_, err2 := dcap.ParseQEIdentity(doc, r)
		if isInfo := strings.HasPrefix(name, "tcb_info"); isInfo != (err == nil) || isInfo == (err2 == nil) {
			t.Errorf("%s: as TCB info %v, as QE identity %v", name, err, err2)
		}
	}
	s := dcaptest.Intel2023(t)
	if _, err := dcap.ParsePCKCRL(s.PCKCRLs[dcap.PlatformCA], dcap.PlatformCA, r); err != nil {
		t.Error(err)
	}
	if _, err := dcap.ParsePCKCRL(s.PCKCRLs[dcap.PlatformCA], dcap.ProcessorCA, r); err == nil {
		t.Error("the platform CA's list counts as the processor CA's")
	}
	if list, err := dcap.ParseRootCRL(s.Root, r); err != nil || list.Number.Int64() != 1 {
		t.Error(err)
	}
	if _, err := dcap.ParseRootCRL(s.PCKCRLs[dcap.PlatformCA].Body, r); err == nil {
		t.Error("the platform CA's list counts as the root's")
	}
}

// No bit can be flipped, neither in a document nor in the chain of its signer.
func TestEachBitOfRealDocuments(t *testing.T) {
	t.Parallel()
	r, docs, s := roots(t), documents(t), dcaptest.Intel2023(t)
	info, crl := docs["tcb_info_tdx_50806f000000_2023-06.json"], s.PCKCRLs[dcap.PlatformCA]
	teetest.EachBit(t, "TCB info", info.Body, func(b []byte) bool {
		_, err := dcap.ParseTCBInfo(dcap.Signed{Body: b, IssuerChain: info.IssuerChain}, r)
		return err == nil
	})
	teetest.EachBit(t, "signer's chain", info.IssuerChain, func(b []byte) bool {
		_, err := dcap.ParseTCBInfo(dcap.Signed{Body: info.Body, IssuerChain: b}, r)
		return err == nil
	})
	identity := docs["qe_identity_tdx_2025-10.json"]
	teetest.EachBit(t, "QE identity", bytes.TrimSpace(identity.Body), func(b []byte) bool {
		_, err := dcap.ParseQEIdentity(dcap.Signed{Body: b, IssuerChain: identity.IssuerChain}, r)
		return err == nil
	})
	teetest.EachBit(t, "PCK CRL", crl.Body, func(b []byte) bool {
		_, err := dcap.ParsePCKCRL(dcap.Signed{Body: b, IssuerChain: crl.IssuerChain}, dcap.PlatformCA, r)
		return err == nil
	})
	teetest.EachBit(t, "chain of the PCK CRL", crl.IssuerChain, func(b []byte) bool {
		_, err := dcap.ParsePCKCRL(dcap.Signed{Body: crl.Body, IssuerChain: b}, dcap.PlatformCA, r)
		return err == nil
	})
	teetest.EachBit(t, "root CRL", s.Root, func(b []byte) bool {
		_, err := dcap.ParseRootCRL(b, r)
		return err == nil
	})
}

// What is minted parses to what it was made of.
func TestMintedDocuments(t *testing.T) {
	t.Parallel()
	for _, k := range []dcap.Kind{dcap.SGX, dcap.TDX} {
		w := dcaptest.New(t, k)
		s, r := w.Collateral(t), roots(t, w.Root(t))
		info, err := dcap.ParseTCBInfo(s.TCBInfos[dcap.Family{Kind: k, FMSPC: w.PCK.FMSPC}], r)
		if err != nil {
			t.Fatal(err)
		}
		if info.Root == nil || !info.Root.Development || len(info.IssuerChain) != 2 {
			t.Errorf("root %v, %d issuers", info.Root, len(info.IssuerChain))
		}
		info.Root, info.IssuerChain = nil, nil
		want := *w.TCBInfo[k]
		if k == dcap.SGX { // the levels have no TDX components
			for i := range want.Levels {
				want.Levels[i].TDX = [16]byte{}
			}
		}
		if diff := cmp.Diff(&want, info); diff != "" {
			t.Error(diff)
		}
		identity, err := dcap.ParseQEIdentity(s.QEIdentities[k], r)
		if err != nil {
			t.Fatal(err)
		}
		identity.Root, identity.IssuerChain = nil, nil
		if diff := cmp.Diff(w.Identity[k], identity); diff != "" {
			t.Error(diff)
		}
		if _, err := dcap.ParseTCBInfo(s.TCBInfos[dcap.Family{Kind: k, FMSPC: w.PCK.FMSPC}], roots(t)); err == nil {
			t.Error("a made-up root counts as Intel's")
		}
	}
}

// Documents that are signed and yet are not what they should be.
func TestSignedNonsense(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	r := roots(t, w.Root(t))
	good := w.Collateral(t).TCBInfos[dcap.Family{Kind: dcap.TDX, FMSPC: w.PCK.FMSPC}].Body
	var doc struct {
		Inner json.RawMessage `json:"tcbInfo"`
	}
	if err := json.Unmarshal(good, &doc); err != nil {
		t.Fatal(err)
	}
	inner := string(doc.Inner)
	parse := func(inner string) error {
		s, err := w.Authority.SignDocument("tcbInfo", []byte(inner))
		if err != nil {
			t.Fatal(err)
		}
		_, err = dcap.ParseTCBInfo(s, r)
		return err
	}
	replace := func(old, with string) string {
		if !strings.Contains(inner, old) {
			t.Fatalf("no %s in %s", old, inner)
		}
		return strings.Replace(inner, old, with, 1)
	}
	for name, text := range map[string]string{
		"as it is": inner, "a member of the future": replace(`"version":3`, `"version":3,"future":{"x":[1]}`), "spaces": replace(`"version":3`, "\"version\" :\n 3"),
		"a component's member of the future": replace(`{"svn":5}`, `{"svn":5,"category":"BIOS","future":null}`),
	} {
		if err := parse(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"version 2": replace(`"version":3`, `"version":2`), "version 4": replace(`"version":3`, `"version":4`), "no version": replace(`"version":3,`, ""),
		"a name twice": replace(`"version":3`, `"version":3,"version":3`), "another id": replace(`"id":"TDX"`, `"id":"TDZ"`), "TCB type": replace(`"tcbType":0`, `"tcbType":1`),
		"FMSPC": replace(`"fmspc":"C0FFE0000000"`, `"fmspc":"C0FFE00000"`), "FMSPC in other digits": replace(`"fmspc":"C0FFE0000000"`, `"fmspc":"C0FFEX000000"`),
		"no levels":     `{"id":"SGX","version":3,"issueDate":"2026-01-01T00:00:00Z","nextUpdate":"2026-02-01T00:00:00Z","fmspc":"000000000000","pceId":"0000","tcbLevels":[]}`,
		"15 components": replace(`{"svn":5},{"svn":5}`, `{"svn":5}`), "negative SVN": replace(`{"svn":5}`, `{"svn":-1}`), "huge SVN": replace(`{"svn":5}`, `{"svn":256}`), "fractional SVN": replace(`{"svn":5}`, `{"svn":1.5}`),
		"no PCESVN": replace(`,"pcesvn":13`, ``), "huge PCESVN": replace(`"pcesvn":13`, `"pcesvn":65536`), "no status": replace(`"tcbStatus":"UpToDate"`, `"tcbStatus":""`),
		"no date": replace(`"tcbDate":"2026-02-11T00:00:00Z",`, ``), "a date that is none": replace(`"tcbDate":"2026-02-11T00:00:00Z"`, `"tcbDate":"2026-02-30T00:00:00Z"`),
		"dates reversed": replace(`"issueDate":"2026`, `"issueDate":"2027`), "no module": replace(`"tdxModule":`, `"tdxMaudule":`), "short signer": replace(`"mrsigner":"00`, `"mrsigner":"`),
		"an array": "[]", "null": "null", "a number": "1", "deep": strings.Repeat("[", 100) + strings.Repeat("]", 100),
	} {
		if err := parse(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, body := range map[string]string{
		"member behind": strings.TrimSuffix(string(good), "}") + `,"x":1}`, "text behind": string(good) + "x", "twice": string(good) + string(good), "empty": "", "no signature": `{"tcbInfo":` + inner + `}`,
		"empty signature": `{"tcbInfo":` + inner + `,"signature":""}`, "zero signature": `{"tcbInfo":` + inner + `,"signature":"` + strings.Repeat("0", 128) + `"}`,
		"upper case": strings.Replace(string(good), `"signature":"`, `"signature":"`+"", 1)[:len(good)-130] + strings.ToUpper(string(good[len(good)-130:len(good)-2])) + `"}`,
		"too long":   string(good) + strings.Repeat(" ", dcap.MaxDocument),
	} {
		if _, err := dcap.ParseTCBInfo(dcap.Signed{Body: []byte(body), IssuerChain: w.Collateral(t).TCBInfos[dcap.Family{Kind: dcap.TDX, FMSPC: w.PCK.FMSPC}].IssuerChain}, r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The signer's role cannot be played by another certificate of the hierarchy.
func TestSignersRole(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	r := roots(t, w.Root(t))
	p := w.Quoter(t)
	for name, signer := range map[string]dcapmint.Holder{"PCK": p.PCK, "platform CA": w.Authority.Platform, "root": w.Authority.Root} {
		a := *w.Authority
		a.Signing = signer
		s, err := a.TCBInfo(w.TCBInfo[dcap.TDX])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dcap.ParseTCBInfo(s, r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRoots(t *testing.T) {
	t.Parallel()
	w, other := dcaptest.New(t, dcap.TDX), dcaptest.New(t, dcap.TDX)
	for name, development := range map[string][]dcap.DevelopmentRoot{
		"no name":       {{PEM: w.Authority.RootPEM()}},
		"no PEM":        {{Name: "x"}},
		"Intel's":       {{Name: "x", PEM: dcaptest.File(t, "chain_signing_2018.pem")[strings.Index(string(dcaptest.File(t, "chain_signing_2018.pem")), "-----END")+26:]}},
		"two":           {{Name: "x", PEM: append(w.Authority.RootPEM(), other.Authority.RootPEM()...)}},
		"one twice":     {{Name: "x", PEM: w.Authority.RootPEM()}, {Name: "y", PEM: w.Authority.RootPEM()}},
		"intermediate":  {{Name: "x", PEM: dcaptest.File(t, "chain_platform_ca.pem")[:strings.Index(string(dcaptest.File(t, "chain_platform_ca.pem")), "-----END")+26]}},
		"text in front": {{Name: "x", PEM: append([]byte("x\n"), w.Authority.RootPEM()...)}},
	} {
		if _, err := dcap.Roots(development...); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestStatic(t *testing.T) {
	t.Parallel()
	s := new(dcap.Static)
	_, err1 := s.TCBInfo(t.Context(), dcap.TDX, [6]byte{1})
	_, err2 := s.QEIdentity(t.Context(), dcap.SGX)
	_, err3 := s.PCKCRL(t.Context(), dcap.PlatformCA)
	_, err4 := s.RootCRL(t.Context())
	for _, err := range []error{err1, err2, err3, err4} {
		if e, ok := errors.AsType[*tee.CollateralError](err); !ok || e.Reason != tee.CollateralMissing {
			t.Errorf("got %v", err)
		}
	}
}

func TestRevocationLists(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	r := roots(t, w.Root(t))
	w.PCKCRL.Serials = append(w.PCKCRL.Serials, new(big.Int).Lsh(big.NewInt(1), 150))
	list, err := dcap.ParsePCKCRL(w.Collateral(t).PCKCRLs[dcap.ProcessorCA], dcap.ProcessorCA, r)
	if err != nil || len(list.RevokedCertificateEntries) != 2 {
		t.Errorf("got %v", err)
	}
	a := *w.Authority
	a.Platform = w.Quoter(t).PCK // no CA
	if s, err := a.PCKCRL(dcap.PlatformCA, w.PCKCRL); err == nil {
		if _, err := dcap.ParsePCKCRL(s, dcap.PlatformCA, r); err == nil {
			t.Error("a list by an end entity is accepted")
		}
	}
	for _, der := range [][]byte{nil, {0x30}, make([]byte, dcap.MaxCRL+1)} {
		if _, err := dcap.ParseRootCRL(der, r); err == nil {
			t.Error("accepted")
		}
	}
}

// Only the documents' form is at stake: without the key no fuzzer gets further.
func FuzzParseTCBInfo(f *testing.F) {
	w := dcaptest.New(f, dcap.TDX)
	r := roots(f, w.Root(f))
	for _, doc := range documents(f) {
		f.Add(doc.Body, []byte("{}"))
	}
	s := w.Collateral(f)
	for _, doc := range []dcap.Signed{s.TCBInfos[dcap.Family{Kind: dcap.TDX, FMSPC: w.PCK.FMSPC}], s.QEIdentities[dcap.TDX]} {
		_, inner, _ := bytes.Cut(doc.Body, []byte(":"))
		inner, _, _ = bytes.Cut(inner, []byte(`,"signature"`))
		f.Add(doc.Body, inner)
	}
	f.Fuzz(func(t *testing.T, body, inner []byte) {
		_, _ = dcap.ParseTCBInfo(dcap.Signed{Body: body}, r)
		for _, member := range []string{"tcbInfo", "enclaveIdentity"} {
			s, err := w.Authority.SignDocument(member, inner)
			if err != nil {
				t.Fatal(err)
			}
			if info, err := dcap.ParseTCBInfo(s, r); err == nil {
				_, _ = info.Evaluate(&w.PCK, &[16]byte{6, 1, 6}, nil)
			}
			_, _ = dcap.ParseQEIdentity(s, r)
		}
	})
}
