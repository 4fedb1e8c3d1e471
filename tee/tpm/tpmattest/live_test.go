package tpmattest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/internal/teetest/swtpmtest"
	"github.com/coffer-project/coffer/tee/tpm"
	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
	"github.com/coffer-project/coffer/tee/tpm/tpmverify"
)

func attester(t *testing.T, o tpmattest.Options) *tpmattest.Attester {
	t.Helper()
	a, err := tpmattest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func verifier(t *testing.T, o tpmverify.Options) *tpmverify.Verifier {
	t.Helper()
	v, err := tpmverify.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func reportData() []byte {
	out := make([]byte, 48)
	_, _ = rand.Read(out)
	return out
}

func evidence(t *testing.T, a tee.Attester, data []byte) json.RawMessage {
	t.Helper()
	e, err := a.Evidence(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestRoundTrip quotes with every kind of key, from attester to verifier.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	for i, kind := range []tpmattest.KeyKind{tpmattest.RSA2048, tpmattest.RSA2048PS, tpmattest.P256, tpmattest.P384} {
		a := attester(t, tpmattest.Options{TPM: s, AK: tpmattest.DefaultAK + uint32(i), CreateAK: true, Kind: kind})
		data := reportData()
		raw := evidence(t, a, data)
		v := verifier(t, tpmverify.Options{TrustedAKs: [][]byte{a.AKPublic()}})
		got, err := v.Verify(t.Context(), raw, tee.Expected{ReportData: data})
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if got.Claims["ak_trusted"] != true || !bytes.Equal(got.ReportData, data[:32]) || got.Claims["pcr17"] == nil {
			t.Errorf("%s: %v", kind, got.Claims)
		}
		if _, err := v.Verify(t.Context(), raw, tee.Expected{ReportData: reportData()}); err == nil {
			t.Errorf("%s: another nonce was accepted", kind)
		}
		other := verifier(t, tpmverify.Options{TrustedAKs: [][]byte{}})
		if _, err := other.Verify(t.Context(), raw, tee.Expected{ReportData: data}); err == nil {
			t.Errorf("%s: a key that is not trusted was accepted", kind)
		}
		e, err := tpm.ParseEvidence(raw)
		if err != nil {
			t.Fatal(err)
		}
		flip(t, string(kind), v, e, data)
	}
}

// flip changes every bit of what the TPM made.
func flip(t *testing.T, name string, v tee.Verifier, e *tpm.Evidence, data []byte) {
	t.Helper()
	accepted := func(change func(*tpm.Evidence)) bool {
		mutated := *e
		change(&mutated)
		raw, err := mutated.JSON()
		if err != nil {
			return false
		}
		_, err = v.Verify(context.Background(), raw, tee.Expected{ReportData: data})
		if _, refused := errors.AsType[*tee.Error](err); err != nil && !refused {
			t.Errorf("%s: expected a refusal, got %v", name, err)
		}
		return err == nil
	}
	teetest.EachBit(t, name+" message", e.Quote.Message, func(m []byte) bool {
		return accepted(func(e *tpm.Evidence) { e.Quote.Message = m })
	})
	teetest.EachBit(t, name+" signature", e.Quote.Signature, func(m []byte) bool {
		return accepted(func(e *tpm.Evidence) { e.Quote.Signature = m })
	})
	teetest.EachBit(t, name+" key", e.AKPublic, func(m []byte) bool {
		return accepted(func(e *tpm.Evidence) { e.AKPublic = m })
	})
	var all []byte
	for _, p := range e.Quote.PCRs {
		all = append(all, p[:]...)
	}
	teetest.EachBit(t, name+" registers", all, func(m []byte) bool {
		return accepted(func(e *tpm.Evidence) {
			for i := range e.Quote.PCRs {
				copy(e.Quote.PCRs[i][:], m[32*i:])
			}
		})
	})
}

// TestInitData binds initdata and sees it in the quote.
func TestInitData(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	a := attester(t, tpmattest.Options{TPM: s, CreateAK: true, Hierarchy: tpmattest.Owner})
	v := verifier(t, tpmverify.Options{})
	digest, data := bytes.Repeat([]byte{0xD1}, 32), reportData()
	want := tee.Expected{ReportData: data, InitData: digest}

	if _, err := v.Verify(t.Context(), evidence(t, a, data), want); err == nil {
		t.Error("initdata that was not bound was accepted")
	}
	if err := a.BindInitData(t.Context(), bytes.Repeat([]byte{1}, 48)); err == nil {
		t.Error("a digest of 48 bytes was bound")
	}
	for range 2 { // the second time nothing is left to do
		if err := a.BindInitData(t.Context(), digest); err != nil {
			t.Fatal(err)
		}
	}
	got, err := v.Verify(t.Context(), evidence(t, a, data), want)
	if err != nil {
		t.Fatal(err)
	}
	field, err := a.InitData(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := tpm.Extended([32]byte(digest)); !bytes.Equal(got.InitData, want[:]) || !bytes.Equal(field, want[:]) {
		t.Errorf("init data: expected %x, got %x and %x", want, got.InitData, field)
	}
	want.InitData = bytes.Repeat([]byte{0xD2}, 32)
	if _, err := v.Verify(t.Context(), evidence(t, a, data), want); err == nil {
		t.Error("other initdata was accepted")
	}
	want.InitData = bytes.Repeat([]byte{0xD1}, 48)
	if _, err := v.Verify(t.Context(), evidence(t, a, data), want); err == nil {
		t.Error("initdata with a digest of 48 bytes was accepted")
	}
	if err := a.BindInitData(t.Context(), want.InitData[:32]); err != nil {
		t.Error("bound initdata cannot be bound again:", err)
	}
	if err := tpmattest.ExtendPCR(s, tpm.InitDataPCR, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := a.BindInitData(t.Context(), digest); err == nil {
		t.Error("initdata was bound to a register that holds something else")
	}
}

// TestExtend sees the extension of a register in the next quote.
func TestExtend(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	a := attester(t, tpmattest.Options{TPM: s, CreateAK: true})
	v := verifier(t, tpmverify.Options{})
	data := reportData()
	before, err := v.Verify(t.Context(), evidence(t, a, data), tee.Expected{ReportData: data})
	if err != nil {
		t.Fatal(err)
	}
	if err := tpmattest.ExtendPCR(s, 23, [32]byte{7}); err != nil {
		t.Fatal(err)
	}
	after, err := v.Verify(t.Context(), evidence(t, a, data), tee.Expected{ReportData: data})
	if err != nil {
		t.Fatal(err)
	}
	if before.Claims["pcr23"] == after.Claims["pcr23"] || before.Claims["pcr22"] != after.Claims["pcr22"] {
		t.Errorf("registers 22 and 23: %v, %v before, %v, %v after", before.Claims["pcr22"], before.Claims["pcr23"], after.Claims["pcr22"], after.Claims["pcr23"])
	}
	if err := tpmattest.ExtendPCR(s, 24, [32]byte{7}); err == nil {
		t.Error("register 24 was extended")
	}
}

// TestRace extends a register behind each quote: values and digest must agree
// all the same, or there is no evidence.
func TestRace(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	v := verifier(t, tpmverify.Options{})
	for _, c := range []struct {
		extensions int
		good       bool
	}{{1, true}, {3, true}, {100, false}} {
		r := &racing{TPM: s}
		a := attester(t, tpmattest.Options{TPM: r, CreateAK: true})
		r.left = c.extensions
		data := reportData()
		raw, err := a.Evidence(t.Context(), data)
		if (err == nil) != c.good {
			t.Fatalf("%d extensions: %v", c.extensions, err)
		}
		if err == nil {
			if _, err := v.Verify(t.Context(), raw, tee.Expected{ReportData: data}); err != nil {
				t.Errorf("%d extensions: %v", c.extensions, err)
			}
		}
	}
}

// racing extends a register after each quote.
type racing struct {
	transport.TPM
	left int
}

func (r *racing) Send(command []byte) ([]byte, error) {
	out, err := r.TPM.Send(command)
	if quote := []byte{0, 0, 1, 0x58}; err == nil && len(command) > 10 && bytes.Equal(command[6:10], quote) && r.left > 0 {
		r.left--
		if err := tpmattest.ExtendPCR(r.TPM, 16, [32]byte{1}); err != nil {
			return nil, err
		}
	}
	return out, err
}

// TestEventLog sends a log of what was measured, and logs of something else.
func TestEventLog(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	w, err := eventlog.NewWriter(eventlog.TCG2, []eventlog.Alg{eventlog.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"firmware", "configuration", "loader", "kernel"} {
		register := []int{0, 1, 4, 9}[i]
		digests, err := w.Measure(register, eventlog.IPL, []byte(text), []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := tpmattest.ExtendPCR(s, register, [32]byte(digests[0].Value)); err != nil {
			t.Fatal(err)
		}
	}
	log := bytes.Clone(w.Bytes())
	a := attester(t, tpmattest.Options{TPM: s, CreateAK: true, EventLog: func() ([]byte, error) { return log, nil }})
	v, data := verifier(t, tpmverify.Options{}), reportData()
	verify := func() (*tee.Result, error) {
		return v.Verify(t.Context(), evidence(t, a, data), tee.Expected{ReportData: data})
	}
	events := func(r *tee.Result) int {
		list, ok := r.Claims["uefi_event_logs"].([]any)
		if !ok {
			t.Fatalf("uefi_event_logs: %T", r.Claims["uefi_event_logs"])
		}
		return len(list)
	}
	got, err := verify()
	if err != nil || events(got) != 4 || len(got.Warnings) != 0 {
		t.Fatalf("%v, %+v", err, got)
	}
	// The system extends a register without the firmware's knowledge.
	if err := tpmattest.ExtendPCR(s, 9, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	if got, err = verify(); err != nil || events(got) != 3 || len(got.Warnings) != 1 {
		t.Errorf("register 9 extended behind the log: %v, %+v", err, got)
	}
	for name, bad := range map[string][]byte{
		"cut": log[:len(log)-3], "no log": []byte("no log"), "an event less": log[:bytes.Index(log, []byte("configuration"))+len("configuration")],
	} {
		log = bad
		if got, err := verify(); err == nil {
			t.Errorf("%s: accepted, %+v", name, got)
		}
	}
	a = attester(t, tpmattest.Options{TPM: s, EventLog: func() ([]byte, error) { return nil, os.ErrPermission }})
	if _, err := a.Evidence(t.Context(), data); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a log that cannot be read: %v", err)
	}
}
