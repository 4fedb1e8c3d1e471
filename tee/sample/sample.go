// Package sample speaks the "sample" TEE of confidential containers: evidence
// without any cryptography, for trying protocols out. Whoever can send bytes
// can make it, so a result is always simulated, and programs refuse it unless
// told otherwise.
package sample

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
)

// maxEvidence bounds evidence from the other side in bytes.
const maxEvidence = 16 << 10

// The security version numbers of the environment and of the device.
const (
	svn       = "1"
	deviceSVN = "2"
)

// evidence is the JSON form. The byte strings are standard base64 with padding.
type evidence struct {
	SVN        string `json:"svn"`
	ReportData []byte `json:"report_data"`
	InitData   []byte `json:"init_data,omitempty"`
}

type attester struct{ initData []byte }

// NewAttester returns an attester whose evidence carries initData: the digest
// of the initdata document, or nil for none.
func NewAttester(initData []byte) tee.Attester { return attester{bytes.Clone(initData)} }

// TEE implements [tee.Attester].
func (attester) TEE() tee.Name { return tee.Sample }

// Evidence implements [tee.Attester]. The sample format carries report data as
// it is: it is not padded.
func (a attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(reportData) > 64 {
		return nil, errors.New("sample: report data: expected at most 64 bytes")
	}
	return json.Marshal(evidence{SVN: svn, ReportData: reportData, InitData: a.initData})
}

// InitData implements [tee.Attester].
func (a attester) InitData(context.Context) ([]byte, error) { return bytes.Clone(a.initData), nil }

type verifier struct {
	name  tee.Name
	class tee.Class
	svn   string
}

// NewVerifier returns a verifier of sample evidence. Claims are those of the
// confidential containers' attestation service (svn, report_data,
// launch_digest, platform_version, debug, init_data; byte strings in hex) and
// simulated, which is true.
func NewVerifier() tee.Verifier { return verifier{tee.Sample, tee.CPU, svn} }

// NewDeviceVerifier returns a verifier of the sample device, whose evidence has
// the same form and comes beside that of an environment. It counts as a GPU.
func NewDeviceVerifier() tee.Verifier { return verifier{tee.SampleDevice, tee.GPU, deviceSVN} }

// TEE implements [tee.Verifier].
func (v verifier) TEE() tee.Name { return v.name }

// Verify implements [tee.Verifier].
func (v verifier) Verify(ctx context.Context, raw json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var e evidence
	if err := strictjson.Decode(raw, &e, strictjson.Limits{Bytes: maxEvidence, Depth: 2}); err != nil {
		return nil, &tee.Error{TEE: v.name, Failures: []tee.Failure{{Check: "sample.format", Field: "evidence", Got: err.Error()}}}
	}
	l := checks.New(v.name, false)
	compare := func(check, field string, expected, got []byte) {
		if subtle.ConstantTimeCompare(expected, got) != 1 {
			l.Fail(tee.Failure{Check: check, Field: field, Expected: hex.EncodeToString(expected), Got: hex.EncodeToString(got)})
		}
	}
	if e.SVN != v.svn {
		l.Fail(tee.Failure{Check: "sample.svn", Field: "svn", Expected: v.svn, Got: e.SVN})
	}
	// The format carries both digests as they are: nothing is fitted.
	if want.ReportData == nil {
		l.ReportData("sample", "report_data", e.ReportData, want)
	} else {
		compare("sample.report_data", "report_data", want.ReportData, e.ReportData)
	}
	if want.InitData != nil {
		compare("sample.init_data", "init_data", want.InitData, e.InitData)
	}
	if err := l.Err(); err != nil {
		return nil, err
	}
	return &tee.Result{
		TEE: v.name, Class: v.class, ReportData: e.ReportData, InitData: e.InitData, Simulated: true, Warnings: l.Warnings(),
		Claims: map[string]any{
			"svn":              e.SVN,
			"report_data":      hex.EncodeToString(e.ReportData),
			"init_data":        hex.EncodeToString(e.InitData),
			"launch_digest":    "abcde",
			"platform_version": map[string]any{"major": 1, "minor": 4},
			"debug":            false,
			"simulated":        true,
		},
	}, nil
}

// FromRaw refuses everything: the evidence is JSON and nothing else.
func FromRaw([]byte) (json.RawMessage, error) {
	return nil, errors.New("sample evidence is JSON: it has no binary form")
}

// Inspect decodes evidence JSON without trust, which is all that one can do.
func Inspect(data []byte) (*tee.Inspection, error) {
	var e evidence
	if err := strictjson.Decode(data, &e, strictjson.Limits{Bytes: maxEvidence, Depth: 2}); err != nil {
		return nil, err
	}
	if e.SVN == "" || e.ReportData == nil {
		return nil, errors.New("sample evidence has svn and report_data")
	}
	x := &tee.Inspection{TEE: tee.Sample, Format: "sample evidence", Fields: map[string]any{"svn": e.SVN, "report_data": hex.EncodeToString(e.ReportData), "init_data": hex.EncodeToString(e.InitData)}}
	x.Odd = append(x.Odd, "anybody can write sample evidence")
	if e.SVN != svn && e.SVN != deviceSVN {
		x.Odd = append(x.Odd, "svn is neither that of the environment ("+svn+") nor that of the device ("+deviceSVN+")")
	}
	return x, nil
}
