package csvverify

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/emmansun/gmsm/sm3"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
)

// checkEventLog replays the log against the registers.
func (j *judgement) checkEventLog() {
	if j.e.EventLog == nil {
		return
	}
	f := tee.Failure{Check: "csv.event_log", Field: "cc_eventlog"}
	log, err := eventlog.Parse(j.e.EventLog, eventlog.CCEL, eventlog.WithHash(eventlog.SM3, sm3.New))
	switch {
	case err != nil && j.r.Version > 1:
		f.Expected, f.Got, f.Help = "a CCEL log", err.Error(), "the log was cut or altered"
		j.Fail(f)
	case j.r.Version > 1:
		want := map[int][]byte{1: j.r.RTMR[1], 2: j.r.RTMR[2], 3: j.r.RTMR[3], 4: j.r.RTMR[4]}
		if err := log.Compare(eventlog.SM3, want); err != nil {
			f.Expected, f.Got, f.Help = "a log that replays to RTMR 1 to 4", err.Error(), "the log is another one's, or events are missing or altered"
			if m, ok := errors.AsType[*eventlog.Mismatch](err); ok {
				f.Field = fmt.Sprintf("rtmr%d", m.Register)
			}
			j.Fail(f)
			return
		}
		j.claims["uefi_event_logs"] = log.ClaimsOf(eventlog.SM3)
	case err != nil || len(log.Events) > 0:
		f.Expected, f.Got, f.Help = "no log beside a report of version 1", fmt.Sprintf("a log of %d bytes", len(j.e.EventLog)), "version 1 has no registers that the log could be checked against: it is ignored"
		j.Warn(f)
	}
}

// checkBinding compares with what the evidence has to be for.
func (j *judgement) checkBinding(want tee.Expected) {
	j.ReportData("csv", "report_data", j.r.ReportData, want)
	if j.r.Version == 3 {
		j.InitData("csv.host_data", "host_data", j.r.HostData, want)
		return
	}
	if want.InitData != nil {
		j.Fail(tee.Failure{
			Check: "csv.init_data", Field: "init_data", Expected: hex.EncodeToString(want.InitData) + ", bound by the report", Got: fmt.Sprintf("a report of version %d, which has no field for it", j.r.Version),
			Help: "the host could have exchanged initdata: run this guest without, or on firmware that reports host data (version 3)",
		})
	}
}
