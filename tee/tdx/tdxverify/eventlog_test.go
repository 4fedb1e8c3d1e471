package tdxverify_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/tdx"
)

// Registers of a TD are of SHA-384. A digest of another algorithm beside it in the
// log is nobody's but the sender's, and gets into no claim.
func TestUnmeasuredDigests(t *testing.T) {
	t.Parallel()
	w, err := eventlog.NewWriter(eventlog.CCEL, []eventlog.Alg{eventlog.SHA384, eventlog.SHA512})
	if err != nil {
		t.Fatal(err)
	}
	measured, lie := sha512.Sum384([]byte("kernel")), bytes.Repeat([]byte{0x1e}, 64)
	if err := w.Append(2, eventlog.EFIBootServicesApp, []byte("kernel"), []eventlog.Digest{{Alg: eventlog.SHA384, Value: measured[:]}, {Alg: eventlog.SHA512, Value: lie}}); err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(w.Bytes(), eventlog.CCEL)
	if err != nil {
		t.Fatal(err)
	}
	registers, err := log.Replay(eventlog.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	world := dcaptest.New(t, dcap.TDX)
	quote := dcaptest.TDQuote(t, world.Quoter(t), func(q *tdx.Quote) {
		for i := range q.RTMR {
			q.RTMR[i] = [48]byte(registers[i+1])
		}
	})
	r, err := newVerifier(t, ofWorld(t, world)).Verify(t.Context(), evidence(t, quote, w.Bytes()), anyReportDataOf("x"))
	if err != nil {
		t.Fatal(err)
	}
	claims, err := json.Marshal(r.Claims["uefi_event_logs"])
	if err != nil {
		t.Fatal(err)
	}
	if text := string(claims); !strings.Contains(text, hex.EncodeToString(measured[:])) || strings.Contains(text, hex.EncodeToString(lie)) || !strings.Contains(text, `"digest_matches_event":true`) {
		t.Errorf("got %s", text)
	}
}
