package tee

import (
	"fmt"
	"time"
)

// CollateralReason is why collateral could not be had.
type CollateralReason string

// The reasons.
const (
	CollateralMissing     CollateralReason = "missing"     // no store has it, and nothing may be fetched
	CollateralUnreachable CollateralReason = "unreachable" // the service did not answer, or with an error
	CollateralThrottled   CollateralReason = "throttled"   // the service wants to be left alone for a while
	CollateralUnknown     CollateralReason = "unknown"     // the service says that there is no such thing
	CollateralInvalid     CollateralReason = "invalid"     // what the service or a store gave is not what was asked for
)

// CollateralError says why a piece of collateral could not be had. Sources of
// collateral return it, verifiers report it.
type CollateralError struct {
	// Item is the collateral in words, for example "TCB info of TDX platform
	// family 00a06d080000".
	Item string
	// Source is the URL or file that was tried; may be empty.
	Source string
	Reason CollateralReason
	// RetryAfter is when another try makes sense; zero where nothing is known.
	RetryAfter time.Duration
	Err        error
}

func (e *CollateralError) Error() string {
	s := e.Item + ": " + string(e.Reason)
	if e.Source != "" {
		s += " (" + e.Source + ")"
	}
	if e.RetryAfter > 0 {
		s += fmt.Sprintf(", try again in %s", e.RetryAfter.Round(time.Second))
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *CollateralError) Unwrap() error { return e.Err }

// Help says what to do about it.
func (e *CollateralError) Help() string {
	switch e.Reason {
	case CollateralMissing:
		return "fetch it with `coffer collateral fetch`, import it into the offline store, or allow fetching"
	case CollateralThrottled:
		return "the service allows few requests: wait, or import the collateral into the offline store"
	case CollateralUnknown:
		return "the service knows no such platform or patch level: is it a production part, and is its firmware released?"
	case CollateralInvalid:
		return "the source is broken or lies: look at what it serves, or use another"
	default:
		return "check the network and the service's address, or import the collateral into the offline store"
	}
}
