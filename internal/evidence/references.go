package evidence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/provenance"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/tee"
)

// References are the reference values of one file, by name.
type References map[string]refvalues.Reference

// maxReferences bounds a file of reference values in bytes.
const maxReferences = provenance.MaxMessage

// ParseReferences reads a file of reference values: a message of the reference
// value provider protocol ({"version":"0.1.0","type":…,"payload":…}), a CoRIM,
// or an object {"name": value or list of values, …}. Whose values they are is
// not asked: whoever names the file vouches for it.
func ParseReferences(ctx context.Context, data []byte, now func() time.Time) (References, error) {
	if len(data) > maxReferences {
		return nil, fmt.Errorf("reference values: expected at most %d bytes, got %d", maxReferences, len(data))
	}
	message := data
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		message = wrap(provenance.CoRIM, data)
	} else if !isMessage(data) {
		var plain map[string]json.RawMessage
		if err := strictjson.Decode(data, &plain, strictjson.Limits{Bytes: maxReferences}); err != nil {
			return nil, fmt.Errorf("reference values: %w", err)
		}
		message = wrap(provenance.Sample, data)
	}
	list, err := provenance.Parse(ctx, provenance.Options{AllowUnsigned: []string{provenance.Sample, provenance.CoRIM, provenance.SWID}, Now: now}, message)
	if err != nil {
		return nil, fmt.Errorf("reference values: %w", err)
	}
	out := References{}
	for _, r := range list {
		out[r.Name] = r
	}
	return out, nil
}

func isMessage(data []byte) bool {
	var m struct {
		Type    string `json:"type"`
		Payload string `json:"payload"`
	}
	return json.Unmarshal(data, &m) == nil && m.Type != "" && m.Payload != ""
}

func wrap(format string, document []byte) []byte {
	// Strings and bytes always encode.
	m, _ := json.Marshal(struct {
		Version string `json:"version"`
		Type    string `json:"type"`
		Payload []byte `json:"payload"`
	}{refvalues.Version, format, document})
	return m
}

// Reference implements [appraisal.References].
func (r References) Reference(_ context.Context, _ tenant.Name, name string) (refvalues.Reference, bool, error) {
	ref, ok := r[name]
	return ref, ok, nil
}

// builtIn is the policy source of a tenant that has stored none.
type builtIn struct{}

func (builtIn) Generation(context.Context, tenant.Name) (int64, error) { return 1, nil }

func (builtIn) PolicyVersions(context.Context, tenant.Name) (map[string]int64, error) {
	return nil, nil //nolint:nilnil // no policy is stored
}

func (builtIn) PolicyText(context.Context, tenant.Name, string, int64) (string, error) {
	return "", errors.New("no policy is stored")
}

// Appraise holds claims against reference values with the trustee's built-in
// policies, and returns what they object to. Simulated evidence is not objected
// to here: whoever names a development root knows.
func Appraise(ctx context.Context, results []*tee.Result, refs References, now func() time.Time) ([]tee.Failure, error) {
	e := appraisal.New(appraisal.Options{Policies: builtIn{}, References: refs, Now: now})
	ev := appraisal.Evidence{Tenant: tenant.Default}
	for _, r := range results {
		ev.Parts = append(ev.Parts, appraisal.Part{Result: r})
	}
	judged, err := e.Appraise(ctx, ev)
	if err != nil {
		return nil, err
	}
	var out []tee.Failure
	for _, name := range judged.Names {
		m := judged.Submods[name]
		for _, f := range m.Findings {
			if f.Rule == appraisal.RuleSimulated {
				continue
			}
			out = append(out, tee.Failure{Check: "appraisal." + f.Affects, Field: field(name, f.Claim), Expected: f.Expected, Got: f.Got, Help: f.Rule + ": " + f.Help})
		}
		if len(m.Findings) == 0 && m.Status != ear.Affirming {
			out = append(out, tee.Failure{Check: "appraisal.status", Field: name, Expected: string(ear.Affirming), Got: string(m.Status)})
		}
	}
	return out, nil
}

func field(submod, claim string) string {
	if submod == ear.CPU {
		return claim
	}
	return submod + "/" + claim
}
