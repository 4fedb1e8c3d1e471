package tdxverify

import (
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/tdx"
)

// checkEventLog replays the log against the registers of the quote; RTMR n is
// register n+1 of the log (UEFI 2.10, table 38-4). It returns the claims that
// rest on the log.
func checkEventLog(l *checks.List, q *tdx.Quote, raw []byte) map[string]any {
	log, err := eventlog.Parse(raw, eventlog.CCEL)
	if err != nil {
		l.Fail(tee.Failure{Check: "tdx.event_log", Field: "cc_eventlog", Expected: "a CCEL event log", Got: err.Error()})
		return nil
	}
	registers := map[int][]byte{}
	for i := range q.RTMR {
		registers[i+1] = q.RTMR[i][:]
	}
	if err := log.Compare(eventlog.SHA384, registers); err != nil {
		l.Fail(mismatch(err))
		return nil
	}
	claims := map[string]any{"uefi_event_logs": log.ClaimsOf(eventlog.SHA384), "boot": log.Boot(eventlog.SHA384).Claims()}
	if events := log.RuntimeEvents(); len(events) > 0 {
		claims["runtime_events"] = events
	}
	return claims
}

// mismatch names the register that the log does not amount to.
func mismatch(err error) tee.Failure {
	f := tee.Failure{
		Check: "tdx.event_log", Field: "cc_eventlog", Expected: "an event log that amounts to the registers", Got: err.Error(),
		Help: "the guest sent another boot's log, or not all of it: have it send the log with the runtime events behind it",
	}
	if m, ok := errors.AsType[*eventlog.Mismatch](err); ok {
		f.Field = fmt.Sprintf("rtmr_%d", m.Register-1)
		if m.Expected != nil || m.Got != nil {
			f.Expected, f.Got = claim(m.Expected), claim(m.Got)
		}
		if m.Event >= 0 {
			f.Got += fmt.Sprintf(", event %d", m.Event)
		}
		f.Got += ": " + m.Reason
	}
	return f
}
