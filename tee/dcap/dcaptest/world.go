package dcaptest

import (
	"math/big"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapmint"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
	"github.com/coffer-project/coffer/tee/sgx"
	"github.com/coffer-project/coffer/tee/tdx"
)

// World is a platform with everything that is said about it, under a root of its
// own. A test changes fields before it asks for [World.Quoter] or
// [World.Collateral], which sign what the fields say then.
type World struct {
	Authority *dcapmint.Authority
	Now       time.Time
	CA        dcap.CA
	PCK       dcapquote.PCK
	QEReport  dcapquote.EnclaveReport
	TCBInfo   map[dcap.Kind]*dcap.TCBInfo
	Identity  map[dcap.Kind]*dcap.QEIdentity
	PCKCRL    dcapmint.Revocations
	RootCRL   dcapmint.Revocations
}

// New returns a world in which everything is up to date.
func New(t testing.TB, k dcap.Kind) *World {
	t.Helper()
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	a, err := dcapmint.NewAuthority(dcapmint.Profile{
		RootName: "Intel SGX Root CA", Organization: "Test", CRLURL: "https://crl.test/", From: now.AddDate(-1, 0, 0), To: now.AddDate(10, 0, 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &World{
		Authority: a, Now: now, CA: dcap.PlatformCA,
		PCK: dcapquote.PCK{
			PPID: [16]byte{1, 2, 3}, Components: [16]byte{5, 5, 2, 2, 3, 1, 0, 3}, PCESVN: 13, CPUSVN: [16]byte{5, 5, 2, 2, 3, 1, 0, 3},
			FMSPC: [6]byte{0xc0, 0xff, 0xe0}, SGXType: dcapquote.SGXScalable, PlatformInstanceID: &[16]byte{9, 8, 7}, Configuration: &dcapquote.Configuration{CachedKeys: true},
		},
		QEReport: dcapquote.EnclaveReport{
			Flags: dcapquote.AttributeInit | dcapquote.AttributeMode64 | dcapquote.AttributeProvisionKey, XFRM: 0xe7,
			MRSigner: [32]byte{0xdc, 0x9e}, ISVProdID: 1, ISVSVN: 8,
		},
		PCKCRL:  dcapmint.Revocations{Number: 7, From: now.AddDate(0, 0, -1), Next: now.AddDate(0, 0, 29), Serials: []*big.Int{big.NewInt(4711)}},
		RootCRL: dcapmint.Revocations{Number: 3, From: now.AddDate(0, -1, 0), Next: now.AddDate(0, 11, 0)},
	}
	if k == dcap.TDX {
		w.QEReport.ISVProdID = 2
	}
	w.TCBInfo = map[dcap.Kind]*dcap.TCBInfo{k: w.tcbInfo(k)}
	w.Identity = map[dcap.Kind]*dcap.QEIdentity{k: w.identity(k)}
	return w
}

// day is the day of Intel's releases, n of them ago.
func day(n int) time.Time { return time.Date(2026, 2, 11, 0, 0, 0, 0, time.UTC).AddDate(0, -3*n, 0) }

func (w *World) tcbInfo(k dcap.Kind) *dcap.TCBInfo {
	t := &dcap.TCBInfo{
		ID: "SGX", Version: 3, FMSPC: w.PCK.FMSPC, PCEID: w.PCK.PCEID, EvaluationDataNumber: 20,
		IssueDate: w.Now.AddDate(0, 0, -2), NextUpdate: w.Now.AddDate(0, 0, 28),
		Levels: []dcap.TCBLevel{
			{SGX: w.PCK.Components, TDX: [16]byte{5, 0, 6}, PCESVN: 13, Date: day(0), Status: dcap.UpToDate},
			{SGX: [16]byte{4, 4, 2, 2, 3, 1, 0, 3}, TDX: [16]byte{5, 0, 5}, PCESVN: 13, Date: day(1), Status: dcap.SWHardeningNeeded, Advisories: []string{"INTEL-SA-00001"}},
			{SGX: [16]byte{3, 3, 2, 2, 3, 1, 0, 3}, TDX: [16]byte{3, 0, 4}, PCESVN: 11, Date: day(2), Status: dcap.OutOfDate, Advisories: []string{"INTEL-SA-00002", "INTEL-SA-00001"}},
			{SGX: [16]byte{2}, TDX: [16]byte{1}, PCESVN: 5, Date: day(3), Status: dcap.Revoked, Advisories: []string{"INTEL-SA-00003"}},
		},
	}
	if k == dcap.SGX {
		return t
	}
	t.ID = "TDX"
	all := [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	t.Module = &dcap.ModuleIdentity{AttributesMask: all}
	t.Modules = []dcap.ModuleIdentity{
		{ID: "TDX_03", AttributesMask: all, Levels: []dcap.EnclaveLevel{{ISVSVN: 3, Date: day(0), Status: dcap.UpToDate}}},
		{ID: "TDX_01", AttributesMask: all, Levels: []dcap.EnclaveLevel{
			{ISVSVN: 6, Date: day(0), Status: dcap.UpToDate},
			{ISVSVN: 4, Date: day(1), Status: dcap.OutOfDate, Advisories: []string{"INTEL-SA-00004"}},
			{ISVSVN: 2, Date: day(2), Status: dcap.Revoked, Advisories: []string{"INTEL-SA-00005"}},
		}},
	}
	return t
}

func (w *World) identity(k dcap.Kind) *dcap.QEIdentity {
	q := &dcap.QEIdentity{
		ID: "QE", Version: 2, EvaluationDataNumber: 19, IssueDate: w.Now.AddDate(0, 0, -3), NextUpdate: w.Now.AddDate(0, 0, 27),
		MiscSelectMask: [4]byte{0xff, 0xff, 0xff, 0xff}, Attributes: [16]byte{0x11},
		AttributesMask: [16]byte{0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		MRSigner:       w.QEReport.MRSigner, ISVProdID: 1,
		Levels: []dcap.EnclaveLevel{
			{ISVSVN: 8, Date: day(0), Status: dcap.UpToDate},
			{ISVSVN: 6, Date: day(4), Status: dcap.OutOfDate, Advisories: []string{"INTEL-SA-00006"}},
			{ISVSVN: 5, Date: day(5), Status: dcap.Revoked},
		},
	}
	if k == dcap.TDX {
		q.ID, q.ISVProdID = "TD_QE", 2
	}
	return q
}

// Quoter makes the platform.
func (w *World) Quoter(t testing.TB) *dcapmint.Platform {
	t.Helper()
	p, err := dcapmint.NewPlatform(w.Authority, &w.PCK, w.CA, w.QEReport)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Root is the world's root, with its collateral.
func (w *World) Root(t testing.TB) dcap.DevelopmentRoot {
	return dcap.DevelopmentRoot{Name: "test", PEM: w.Authority.RootPEM(), Collateral: w.Collateral(t)}
}

// Collateral signs what the fields say.
func (w *World) Collateral(t testing.TB) *dcap.Static {
	t.Helper()
	s := &dcap.Static{TCBInfos: map[dcap.Family]dcap.Signed{}, QEIdentities: map[dcap.Kind]dcap.Signed{}, PCKCRLs: map[dcap.CA]dcap.Signed{}}
	var err error
	check := func() {
		if err != nil {
			t.Fatal(err)
		}
	}
	for k, info := range w.TCBInfo {
		s.TCBInfos[dcap.Family{Kind: k, FMSPC: w.PCK.FMSPC}], err = w.Authority.TCBInfo(info)
		check()
	}
	for k, identity := range w.Identity {
		s.QEIdentities[k], err = w.Authority.QEIdentity(identity)
		check()
	}
	for _, ca := range []dcap.CA{dcap.PlatformCA, dcap.ProcessorCA} {
		s.PCKCRLs[ca], err = w.Authority.PCKCRL(ca, w.PCKCRL)
		check()
	}
	s.Root, err = w.Authority.RootCRL(w.RootCRL)
	check()
	return s
}

// TDQuote is the quote of a TD that is as it should be, version 5 with a TD
// report 1.5, changed by edit.
func TDQuote(t testing.TB, p *dcapmint.Platform, edit func(*tdx.Quote)) []byte {
	t.Helper()
	q := &tdx.Quote{
		Header:    dcapquote.Header{Version: 5, AttestationKeyType: dcapquote.KeyECDSAP256, TEEType: dcapquote.TEETypeTDX, VendorID: dcapquote.IntelQE()},
		BodyType:  tdx.BodyTDReport15,
		TEETCBSVN: [16]byte{6, 1, 6}, TEETCBSVN2: &[16]byte{6, 1, 6}, MRServiceTD: new([48]byte),
		MRSEAM: [48]byte{0x2f}, TDAttributes: tdx.AttributeSEPTVEDisable, XFAM: 0x642e7, MRTD: [48]byte{0x70}, MRConfigID: [48]byte{0xc0},
		RTMR: [4][48]byte{{1}, {2}}, ReportData: [64]byte{'x'},
	}
	if edit != nil {
		edit(q)
	}
	q.BodySize = tdx.TDReport15Size
	if q.BodyType == tdx.BodyTDReport10 {
		q.BodySize = tdx.TDReport10Size
	}
	signed, err := q.SignedBytes()
	if err != nil {
		t.Fatal(err)
	}
	return sign(t, p, signed, q.Header.Version)
}

// EnclaveQuote is the quote of an enclave that is as it should be, version 3,
// changed by edit.
func EnclaveQuote(t testing.TB, p *dcapmint.Platform, edit func(*sgx.Quote)) []byte {
	t.Helper()
	q := &sgx.Quote{
		Header: dcapquote.Header{Version: 3, AttestationKeyType: dcapquote.KeyECDSAP256, Reserved: [4]byte{8, 0, 13}, VendorID: dcapquote.IntelQE()},
		Report: &dcapquote.EnclaveReport{
			CPUSVN: [16]byte{5, 5}, Flags: dcapquote.AttributeInit | dcapquote.AttributeMode64, XFRM: 0xe7, MREnclave: [32]byte{0x8f}, MRSigner: [32]byte{0x83},
			ConfigID: [64]byte{0xc0}, ISVProdID: 3, ISVSVN: 2, ReportData: [64]byte{'x'},
		},
	}
	if edit != nil {
		edit(q)
	}
	return sign(t, p, q.SignedBytes(), q.Header.Version)
}

func sign(t testing.TB, p *dcapmint.Platform, signed []byte, version uint16) []byte {
	t.Helper()
	out, err := p.Quote(signed, version)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
