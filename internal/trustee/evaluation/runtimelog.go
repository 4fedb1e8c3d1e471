package evaluation

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
)

// claimRuntime is the claim that policies read.
const claimRuntime = "runtime_events"

// addRuntimeLog puts the events into the claims of the environment that vouches
// for them. Where a register of its TPM stands behind them, they must amount to it.
func addRuntimeLog(r *tee.Result, raw json.RawMessage) *problem.Error {
	refuse := func(field, expected, got, help string) *problem.Error {
		return problem.Denied(problem.Attestation, "run-time events refused", kbs.Reason{
			Rule: "aael.log", Claim: field, Expected: expected, Got: got, Help: help,
		})
	}
	evidence, err := eventlog.ParseRuntimeEvidence(raw)
	if err != nil {
		return refuse("aael", "a log of run-time events", err.Error(), "")
	}
	events, value, err := evidence.Replayed()
	if err != nil {
		return refuse("aael.log", "run-time events with the digests of their data", err.Error(), "")
	}
	if _, twice := r.Claims[claimRuntime]; twice {
		return refuse("aael", "one log", "a second one beside that of the evidence", "")
	}
	if evidence.PCR != nil {
		name := fmt.Sprintf("pcr%02d", *evidence.PCR)
		register, _ := r.Claims[name].(string)
		if register == "" {
			return refuse(name, "a register of the environment", "none of that name in its evidence", "")
		}
		if value == nil {
			value = make([]byte, 32)
		}
		if got := hex.EncodeToString(value); got != register {
			return refuse(name, register, got, "the log is not whole, or something else extends the register")
		}
	}
	// The result may be shared with who verified it.
	r.Claims = maps.Clone(r.Claims)
	r.Claims[claimRuntime] = events
	return nil
}
