// Package tee turns evidence of trusted execution environments into claims.
//
// An [Attester] runs inside the environment and produces evidence over 64 or
// fewer bytes of report data. A [Verifier] runs at the relying party: it
// checks everything about the evidence that is not a matter of opinion
// (signatures, chains, debug bit, chip identity, minimum TCB, the bound
// report data and initdata) and returns a [Result] whose claims an appraisal
// policy judges. The sub-packages hold one environment each; tee/measure
// predicts launch measurements.
package tee

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// Name is a TEE's name on the wire (KBS protocol, field "tee").
type Name string

// The names the KBS protocol knows.
const (
	SNP          Name = "snp"
	TDX          Name = "tdx"
	SGX          Name = "sgx"
	CCA          Name = "cca"
	SE           Name = "se"
	CSV          Name = "csv"
	TPM          Name = "tpm"
	AzureSNPVTPM Name = "az-snp-vtpm"
	AzureTDXVTPM Name = "az-tdx-vtpm"
	NVIDIA       Name = "nvidia"
	HygonDCU     Name = "hygondcu"
	Sample       Name = "sample"
	SampleDevice Name = "sampledevice"
	// RuntimeLog is no environment: it is the log of run-time events
	// (eventlog.RuntimeEvidence) that comes with the additional evidence of an
	// environment which has no log of its own in its evidence.
	RuntimeLog Name = "aael"
)

// aliases are spellings of kbs-types 0.12 and older.
var aliases = map[string]Name{"azsnpvtpm": AzureSNPVTPM, "aztdxvtpm": AzureTDXVTPM}

// ParseName returns the TEE a wire name stands for. Names are lower case;
// the two undashed Azure names of older clients are understood.
func ParseName(s string) (Name, error) {
	if n, ok := aliases[s]; ok {
		return n, nil
	}
	switch n := Name(s); n {
	case SNP, TDX, SGX, CCA, SE, CSV, TPM, AzureSNPVTPM, AzureTDXVTPM, NVIDIA, HygonDCU, Sample, SampleDevice, RuntimeLog:
		return n, nil
	}
	return "", fmt.Errorf("tee: unknown TEE name %q", s)
}

// Class groups submodules of an attestation result.
type Class string

// Classes of the EAR submods.
const (
	CPU Class = "cpu"
	GPU Class = "gpu"
)

// Expected is what evidence must be bound to.
type Expected struct {
	// ReportData is the digest the evidence must carry, before it is fitted
	// to the environment's field. A verifier refuses nil, unless
	// AnyReportData is set.
	ReportData []byte
	// AnyReportData is for tools that look at evidence outside of a
	// handshake: report data is not compared where ReportData is nil. Such
	// evidence may be anybody's and of any age, and the result has a warning
	// that says so.
	AnyReportData bool
	// InitData is the digest of initdata, before fitting. Nil: not compared;
	// the result still reports what the evidence holds.
	InitData []byte
}

// Result is genuine evidence.
type Result struct {
	TEE   Name
	Class Class
	// Claims are JSON-encodable and documented by the verifier's package.
	Claims map[string]any
	// ReportData and InitData are the fields as the evidence holds them.
	// InitData is nil where the environment has no such field.
	ReportData []byte
	InitData   []byte
	// Simulated is true when the chain ends in a development root.
	Simulated bool
	// Warnings are checks that did not pass, or could not be made, and that
	// the verifier's options or Expected tolerate.
	Warnings []Failure
}

// Verifier checks one environment's evidence. Implementations are safe for
// concurrent use. Verify returns *[Error] when the evidence is not genuine,
// *[UnavailableError] when nothing speaks against it but collateral is missing,
// and another error when it could not be judged (context ended).
type Verifier interface {
	TEE() Name
	Verify(ctx context.Context, evidence json.RawMessage, want Expected) (*Result, error)
}

// MultiVerifier is what a verifier implements whose evidence can be of several
// devices. Its Verify returns the first result only.
type MultiVerifier interface {
	Verifier
	// VerifyAll returns one result for each device, at least one. It fails
	// as a whole where one device does.
	VerifyAll(ctx context.Context, evidence json.RawMessage, want Expected) ([]*Result, error)
}

// Attester produces evidence inside the environment. Implementations are
// safe for concurrent use.
type Attester interface {
	TEE() Name
	// Evidence returns the KBS evidence JSON over reportData (at most 64
	// bytes; shorter is padded with zeros on the right).
	Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error)
	// InitData returns the launch-time initdata field as the environment
	// holds it (SNP: HOST_DATA, 32 bytes; TDX: MRCONFIGID, 48 bytes).
	InitData(ctx context.Context) ([]byte, error)
}

// Failure is one check that evidence did not pass.
type Failure struct {
	// Check is a stable identifier, for example "snp.signature".
	Check string `json:"check"`
	// Field names the part of the evidence, for example "report_data".
	Field    string `json:"field"`
	Expected string `json:"expected,omitempty"`
	Got      string `json:"got,omitempty"`
	// Help says what to do about it.
	Help string `json:"help,omitempty"`
}

// String is one line: check, field, expected, got, help.
func (f Failure) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", f.Check, f.Field)
	if f.Expected != "" || f.Got != "" {
		fmt.Fprintf(&b, ": expected %s, got %s", f.Expected, f.Got)
	}
	if f.Help != "" {
		fmt.Fprintf(&b, " (%s)", f.Help)
	}
	return b.String()
}

// Error says why evidence is not genuine. It has at least one failure.
type Error struct {
	TEE      Name
	Failures []Failure
	// Missing is why collateral could not be had that some of the failures are
	// about; it joins one error for each, normally a *[CollateralError]. Nil
	// where none is.
	Missing error
}

func (e *Error) Error() string {
	lines := make([]string, len(e.Failures))
	for i, f := range e.Failures {
		lines[i] = f.String()
	}
	return fmt.Sprintf("%s evidence refused: %s", e.TEE, strings.Join(lines, "; "))
}

// UnavailableError says that evidence could not be judged: what was checked
// passed, but collateral could not be had. Trying again may help.
type UnavailableError struct {
	TEE Name
	// Failures name the collateral, at least one.
	Failures []Failure
	// Err is why; it joins one *[CollateralError] for each failure that has one.
	Err error
}

func (e *UnavailableError) Error() string {
	lines := make([]string, len(e.Failures))
	for i, f := range e.Failures {
		lines[i] = f.String()
	}
	return fmt.Sprintf("%s evidence cannot be judged: %s", e.TEE, strings.Join(lines, "; "))
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// Fit makes digest size bytes long as every KBS implementation does: a
// shorter one is padded with zeros on the right, a longer one is cut.
func Fit(digest []byte, size int) []byte {
	out := make([]byte, size)
	copy(out, digest)
	return out
}
