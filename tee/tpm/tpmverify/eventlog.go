package tpmverify

import (
	"bytes"
	"encoding/hex"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/tpm"
)

// firmwarePCRs are the registers that only firmware extends, so that its log
// has to account for them (TCG PC Client Platform Firmware Profile 1.06, §3.3.4).
const firmwarePCRs = 8

// checkEventLog replays the log. The firmware's registers must come out as they
// were quoted. Others are extended by loaders and systems that write other
// logs: where they differ, the events of that register are left out with a
// warning. It returns the events that are vouched for.
func checkEventLog(l *checks.List, raw []byte, a *tpm.Attest, pcrs *tpm.PCRs) []any {
	f := tee.Failure{Check: "tpm.event_log", Field: "event_log", Expected: "a TCG2 log with SHA-256 digests"}
	log, err := eventlog.Parse(raw, eventlog.TCG2)
	if err != nil {
		f.Got = err.Error()
		l.Fail(f)
		return nil
	}
	registers, err := log.Replay(eventlog.SHA256)
	if err != nil {
		f.Got = err.Error()
		l.Fail(f)
		return nil
	}
	good := map[int]bool{}
	for r := range pcrs {
		got, named := registers[r]
		if !named {
			got = make([]byte, len(pcrs[r]))
		}
		quoted := len(a.Selections) == 1 && a.Selections[0].Has(r)
		good[r] = quoted && bytes.Equal(got, pcrs[r][:])
		if good[r] || r >= firmwarePCRs && !named {
			continue
		}
		l.FailUnless(r >= firmwarePCRs, tee.Failure{
			Check: "tpm.event_log", Field: fmt.Sprintf("event_log: register %d", r), Expected: hex.EncodeToString(pcrs[r][:]), Got: hex.EncodeToString(got),
			Help: "the log does not account for what is in the register: events are missing, or are not those that were measured",
		})
	}
	claims := log.ClaimsOf(eventlog.SHA256)
	out := make([]any, 0, len(claims))
	for i, e := range log.Events {
		if good[e.Register] && e.Type != eventlog.NoAction {
			out = append(out, claims[i])
		}
	}
	return out
}
