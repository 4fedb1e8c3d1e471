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
)

// maxEvidence bounds evidence from the other side in bytes.
const maxEvidence = 16 << 10

// svn is the only security version number there is.
const svn = "1"

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

type verifier struct{}

// NewVerifier returns a verifier of sample evidence. Claims are those of the
// confidential containers' attestation service (svn, report_data,
// launch_digest, platform_version, debug, init_data; byte strings in hex) and
// simulated, which is true.
func NewVerifier() tee.Verifier { return verifier{} }

// TEE implements [tee.Verifier].
func (verifier) TEE() tee.Name { return tee.Sample }

// Verify implements [tee.Verifier].
func (verifier) Verify(ctx context.Context, raw json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if want.ReportData == nil {
		return nil, errors.New("sample: the expected report data is nil; evidence that is bound to nothing proves nothing")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var e evidence
	if err := strictjson.Decode(raw, &e, strictjson.Limits{Bytes: maxEvidence, Depth: 2}); err != nil {
		return nil, &tee.Error{TEE: tee.Sample, Failures: []tee.Failure{{Check: "sample.format", Field: "evidence", Got: err.Error()}}}
	}
	var failures []tee.Failure
	compare := func(check, field string, expected, got []byte) {
		if subtle.ConstantTimeCompare(expected, got) != 1 {
			failures = append(failures, tee.Failure{Check: check, Field: field, Expected: hex.EncodeToString(expected), Got: hex.EncodeToString(got)})
		}
	}
	if e.SVN != svn {
		failures = append(failures, tee.Failure{Check: "sample.svn", Field: "svn", Expected: svn, Got: e.SVN})
	}
	compare("sample.report_data", "report_data", want.ReportData, e.ReportData)
	if want.InitData != nil {
		compare("sample.init_data", "init_data", want.InitData, e.InitData)
	}
	if len(failures) > 0 {
		return nil, &tee.Error{TEE: tee.Sample, Failures: failures}
	}
	return &tee.Result{
		TEE: tee.Sample, Class: tee.CPU, ReportData: e.ReportData, InitData: e.InitData, Simulated: true,
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
