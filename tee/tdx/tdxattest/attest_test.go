package tdxattest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/configfsi"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/internal/teetest/tsmtest"
	"github.com/coffer-project/coffer/tee/tdx"
)

// quoteOver is the published quote with other report data: the attester checks
// no signature.
func quoteOver(t *testing.T, reportData []byte) []byte {
	t.Helper()
	q, err := os.ReadFile("testdata/quote_v4.dat")
	if err != nil {
		t.Fatal(err)
	}
	// Header 48 bytes, then the body, REPORTDATA at its end (584 − 64).
	copy(q[48+520:], reportData)
	return q
}

// kernel is a report interface that counts its calls.
func kernel(name string, calls *int, quote func(in []byte) ([]byte, error)) configfsi.Client {
	return tsmtest.Kernel{Provider: name, OutBlob: func(in []byte) ([]byte, error) {
		*calls++
		return quote(in)
	}}.Client()
}

// device is a TDX module's TDREPORT: report data, and MRCONFIGID of sevens.
func device(reportData [64]byte) ([]byte, error) {
	r := make([]byte, tdreportSize)
	copy(r[reportDataOffset:], reportData[:])
	copy(r[mrConfigIDOffset:], bytes.Repeat([]byte{7}, mrConfigIDSize))
	return r, nil
}

func evidence(t *testing.T, a tee.Attester, data []byte) (*tdx.Evidence, *tdx.Quote, error) {
	t.Helper()
	raw, err := a.Evidence(t.Context(), data)
	if err != nil {
		return nil, nil, err
	}
	e, err := tdx.ParseEvidence(raw)
	if err != nil {
		t.Fatal(err)
	}
	q, err := tdx.ParseQuote(e.Quote)
	if err != nil {
		t.Fatal(err)
	}
	return e, q, nil
}

func TestWays(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte{3}, 48)
	good := service(t, func(r []byte) []byte {
		q := quoteOver(t, r[reportDataOffset:reportDataOffset+64])
		return response(1, 1, uint32(24+len(q)), 0, 0, uint32(len(q)), q)
	})
	absent := func(context.Context) (net.Conn, error) { return nil, errors.New("connection refused") }
	for name, tc := range map[string]struct {
		device  func([64]byte) ([]byte, error)
		service Dial
		kernel  bool
		// calls is how often the slow way is taken.
		calls int
	}{
		"service":                     {device, good, true, 0},
		"service alone":               {device, good, false, 0},
		"kernel alone":                {nil, nil, true, 1},
		"service absent":              {device, absent, true, 1},
		"no device":                   {nil, good, true, 1},
		"device without a connection": {func([64]byte) ([]byte, error) { return nil, errors.New("EIO") }, good, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			o := Options{TDReport: tc.device, Service: tc.service}
			if tc.kernel {
				o.ConfigFS = kernel("tdx_guest\n", &calls, func(in []byte) ([]byte, error) {
					return append(quoteOver(t, in), make([]byte, 100)...), nil
				})
			}
			a, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			e, q, err := evidence(t, a, data)
			if err != nil {
				t.Fatal(err)
			}
			if q.ReportData != [64]byte(tee.Fit(data, 64)) || e.EventLog != nil || a.TEE() != tee.TDX || calls != tc.calls {
				t.Errorf("report data %x, log of %d bytes, %d calls", q.ReportData, len(e.EventLog), calls)
			}
		})
	}
	if _, err := New(Options{Service: good}); err == nil {
		t.Error("a service without a device is no way to a quote")
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		o    func(*Options)
		data []byte
		want string
	}{
		"report data too long": {func(*Options) {}, make([]byte, 65), "at most 64"},
		"another provider": {func(o *Options) {
			o.ConfigFS = kernel("sev_guest", new(int), func(in []byte) ([]byte, error) { return quoteOver(t, in), nil })
		}, nil, "\"tdx_guest\", got \"sev_guest\""},
		"another's quote": {func(o *Options) {
			o.ConfigFS = kernel("tdx_guest", new(int), func([]byte) ([]byte, error) { return quoteOver(t, []byte{9}), nil })
		}, nil, "report_data: expected"},
		"no quote": {func(o *Options) {
			o.ConfigFS = kernel("tdx_guest", new(int), func([]byte) ([]byte, error) { return nil, errors.New("EIO") })
		}, nil, "EIO"},
		"no log": {func(o *Options) {
			o.EventLog = func() ([]byte, error) { return []byte("no log"), nil }
		}, nil, "event log"},
		"unreadable log": {func(o *Options) {
			o.EventLog = func() ([]byte, error) { return nil, fs.ErrPermission }
		}, nil, "permission"},
	} {
		o := Options{ConfigFS: kernel("tdx_guest", new(int), func(in []byte) ([]byte, error) { return quoteOver(t, in), nil })}
		tc.o(&o)
		a, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := evidence(t, a, tc.data); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	k := tsmtest.Kernel{Provider: "tdx_guest", OutBlob: func(in []byte) ([]byte, error) { return quoteOver(t, in), nil }}
	tsmtest.ContextEnds(t, k, func(client configfsi.Client) tee.Attester {
		a, err := New(Options{ConfigFS: client})
		if err != nil {
			t.Fatal(err)
		}
		return a
	})
}

func TestEventLog(t *testing.T) {
	t.Parallel()
	aael, err := os.ReadFile("testdata/aael.bin")
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Options{
		ConfigFS:   kernel("tdx_guest", new(int), func(in []byte) ([]byte, error) { return quoteOver(t, in), nil }),
		EventLog:   func() ([]byte, error) { return nil, fs.ErrNotExist },
		RuntimeLog: func() ([]byte, error) { return aael, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	e, _, err := evidence(t, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(e.EventLog, eventlog.CCEL)
	if err != nil || len(log.Events) == 0 {
		t.Fatalf("%v", err)
	}
}

func TestInitData(t *testing.T) {
	t.Parallel()
	slow := kernel("tdx_guest", new(int), func(in []byte) ([]byte, error) { return quoteOver(t, in), nil })
	a, err := New(Options{ConfigFS: slow, TDReport: device})
	if err != nil {
		t.Fatal(err)
	}
	got, err := a.InitData(t.Context())
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, 48)) {
		t.Errorf("from the device: %x, %v", got, err)
	}
	if a, err = New(Options{ConfigFS: slow}); err != nil {
		t.Fatal(err)
	}
	if got, err = a.InitData(t.Context()); err != nil || len(got) != 48 {
		t.Errorf("from a quote: %x, %v", got, err)
	}
	for name, broken := range map[string]func([64]byte) ([]byte, error){
		"short":         func([64]byte) ([]byte, error) { return make([]byte, 100), nil },
		"another's":     func([64]byte) ([]byte, error) { return make([]byte, tdreportSize), nil },
		"kernel's word": func([64]byte) ([]byte, error) { return nil, errors.New("EBUSY") },
	} {
		if a, err = New(Options{ConfigFS: slow, TDReport: broken}); err != nil {
			t.Fatal(err)
		}
		if got, err := a.InitData(t.Context()); err == nil {
			t.Errorf("%s: %x", name, got)
		}
	}
}

// The machine of the test is no TDX guest: New says so, or it is one.
func TestLinux(t *testing.T) {
	t.Parallel()
	_, err := os.Stat(Device)
	o := Linux(nil, "/nonexistent")
	if (err == nil) != (o.TDReport != nil) {
		t.Error("the device was not looked for")
	}
	if _, err := o.RuntimeLog(); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := readTDReport("/dev/null", [64]byte{}); err == nil {
		t.Error("/dev/null is no TDX module")
	}
}
