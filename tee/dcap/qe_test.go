package dcap_test

import (
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/sgx"
	"github.com/coffer-project/coffer/tee/tdx"
)

// A genuine platform certifies any enclave that its owner runs. Where the
// identity of Intel's quoting enclave cannot be had, such an enclave must not
// pass for it, not even with a warning.
func TestStrangersQuotingEnclave(t *testing.T) {
	t.Parallel()
	for _, k := range []dcap.Kind{dcap.SGX, dcap.TDX} {
		for name, edit := range map[string]func(*dcaptest.World){
			"Intel's": nil, "a stranger's": func(w *dcaptest.World) { w.QEReport.MRSigner[5] ^= 1 },
			"another of Intel's": func(w *dcaptest.World) { w.QEReport.ISVProdID = 7 },
		} {
			w := dcaptest.New(t, k)
			w.QEReport.MRSigner = dcap.IntelQESigner(k)
			if edit != nil {
				edit(w)
			}
			v, err := dcap.New(dcap.Options{Kind: k, Now: func() time.Time { return w.Now }, DevelopmentRoots: []dcap.DevelopmentRoot{{Name: "test", PEM: w.Authority.RootPEM()}}})
			if err != nil {
				t.Fatal(err)
			}
			dcap.TakeForIntels(v)
			l := checks.New(tee.TDX, true)
			if v.Verify(t.Context(), l, quoteOf(t, w, k)) == nil {
				t.Fatalf("%s, %s: %v", k, name, l.Err())
			}
			if got := l.Err() == nil; got != (edit == nil) {
				t.Errorf("%s, %s quoting enclave without its identity: accepted is %t: %v", k, name, got, l.Err())
			}
		}
	}
}

func quoteOf(t *testing.T, w *dcaptest.World, k dcap.Kind) dcap.Quote {
	t.Helper()
	if k == dcap.SGX {
		q, err := sgx.ParseQuote(dcaptest.EnclaveQuote(t, w.Quoter(t), nil))
		if err != nil {
			t.Fatal(err)
		}
		return dcap.Quote{Signed: q.Signed, Signature: q.Signature}
	}
	q, err := tdx.ParseQuote(dcaptest.TDQuote(t, w.Quoter(t), nil))
	if err != nil {
		t.Fatal(err)
	}
	return dcap.Quote{Signed: q.Signed, Signature: q.Signature, TD: &dcap.TD{TCBSVN: q.TEETCBSVN, TCBSVN2: q.TEETCBSVN2}}
}
