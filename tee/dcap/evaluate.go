package dcap

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

// Verdict is what Intel's documents say about one platform.
type Verdict struct {
	Status Status
	// Date is the oldest of the dates of the levels that were reached.
	Date time.Time
	// Advisories are those of all levels that were reached, sorted.
	Advisories []string
}

// noLevel is said of a platform below the lowest level that Intel lists.
const noLevel = "the patch level is below every one that Intel lists"

// Evaluate finds the status of a platform by its PCK certificate and the level
// of its quoting enclave. svn is the TEE_TCB_SVN of a TD report, nil for SGX.
func (t *TCBInfo) Evaluate(p *dcapquote.PCK, svn *[16]byte, qe *EnclaveLevel) (Verdict, error) {
	level := t.level(p, svn)
	if level == nil {
		return Verdict{}, errors.New(noLevel)
	}
	if !level.Status.ofPlatform() {
		return Verdict{}, fmt.Errorf("status of the TCB level: expected one of API version 4, got %.64q", level.Status)
	}
	out := Verdict{Date: level.Date, Advisories: slices.Clone(level.Advisories)}
	var parts []Status
	add := func(what string, l *EnclaveLevel) error {
		if !l.Status.ofEnclave() {
			return fmt.Errorf("status of the %s: expected one of API version 4, got %.64q", what, l.Status)
		}
		parts = append(parts, l.Status)
		out.Advisories = append(out.Advisories, l.Advisories...)
		if l.Date.Before(out.Date) {
			out.Date = l.Date
		}
		return nil
	}
	if svn != nil && svn[1] > 0 {
		module := t.module(svn[1])
		if module == nil {
			return Verdict{}, fmt.Errorf("TDX module of version %d: Intel lists none", svn[1])
		}
		l := levelOf(module.Levels, uint16(svn[0]))
		if l == nil {
			return Verdict{}, fmt.Errorf("TDX module %s: %s", module.ID, noLevel)
		}
		if err := add("TDX module", l); err != nil {
			return Verdict{}, err
		}
	}
	if qe != nil {
		if err := add("quoting enclave", qe); err != nil {
			return Verdict{}, err
		}
	}
	out.Status = converge(level.Status, parts...)
	slices.Sort(out.Advisories)
	out.Advisories = slices.Compact(out.Advisories)
	return out, nil
}

// level is the first that the platform reaches in every component. A TDX
// module of major version 1 and later has levels of its own: then the first
// two TDX components, which are the module's, do not count here.
func (t *TCBInfo) level(p *dcapquote.PCK, svn *[16]byte) *TCBLevel {
	skip := 0
	if svn != nil && svn[1] > 0 {
		skip = 2
	}
	for i := range t.Levels {
		l := &t.Levels[i]
		if reaches(p.Components[:], l.SGX[:]) && p.PCESVN >= l.PCESVN && (svn == nil || reaches(svn[skip:], l.TDX[skip:])) {
			return l
		}
	}
	return nil
}

func reaches(svn, level []byte) bool {
	for i := range level {
		if svn[i] < level[i] {
			return false
		}
	}
	return true
}

// levelOf is the first level that an enclave or module reaches.
func levelOf(levels []EnclaveLevel, svn uint16) *EnclaveLevel {
	for i := range levels {
		if svn >= levels[i].ISVSVN {
			return &levels[i]
		}
	}
	return nil
}
