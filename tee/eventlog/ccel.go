package eventlog

import (
	"errors"
	"fmt"
	"slices"
)

// endMark is what follows the last event.
const endMark = "\xff\xff\xff\xff\xff\xff\xff\xff"

// CCMR is the measurement register of a confidential guest that stands for a PCR
// (UEFI 2.10, section 38.4.1; guest-components, attester for TDX): 1 for the PCRs 1
// and 7, 2 for 2 to 6, 3 for 8 to 15, and 4 for the others. RTMR n of TDX is CCMR
// n+1. On Hygon CSV PCR 0 is register 0 instead; see csv.
func CCMR(pcr int, csv bool) int {
	switch {
	case pcr == 0 && csv:
		return 0
	case pcr == 1 || pcr == 7:
		return 1
	case pcr >= 2 && pcr <= 6:
		return 2
	case pcr >= 8 && pcr <= 15:
		return 3
	}
	return 4
}

// TrimCCEL cuts what the ACPI table area holds (/sys/firmware/acpi/tables/data/CCEL)
// at its end mark. An area without one is an error: the log would be cut off.
func TrimCCEL(area []byte) ([]byte, error) {
	l, err := Parse(area, CCEL)
	if err != nil {
		return nil, err
	}
	if l.Padding == 0 {
		return nil, errors.New("eventlog: end mark: expected eight bytes of ff or 00 behind the last event, got none")
	}
	return area[:len(area)-l.Padding], nil
}

// Evidence is the log that goes into evidence: the events of the ACPI area, the
// runtime events, and an end mark. area or aael may be nil, but where both are the
// result is nil. Without an area a header of guest-components is written, with the
// algorithms SHA-384 and SM3.
func Evidence(area, aael []byte) ([]byte, error) {
	if area == nil && aael == nil {
		return nil, nil
	}
	out := specIDEvent(0, "", 0, []Alg{SHA384, SM3})
	if area != nil {
		trimmed, err := TrimCCEL(area)
		if err != nil {
			return nil, err
		}
		out = slices.Clone(trimmed)
	}
	if len(aael) > 0 {
		if _, err := Parse(aael, AAEL); err != nil {
			return nil, err
		}
	}
	out = append(append(out, aael...), endMark...)
	if _, err := Parse(out, CCEL); err != nil {
		return nil, fmt.Errorf("runtime events do not go with the log: %w", err)
	}
	return out, nil
}
