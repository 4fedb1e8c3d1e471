package evaluation

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
)

func TestRuntimeLog(t *testing.T) {
	t.Parallel()
	var log []byte
	for _, operation := range []string{"PullImage", "StartContainer"} {
		event, err := eventlog.NewRuntimeEvent("coffer", operation, `{"container":"web"}`)
		if err != nil {
			t.Fatal(err)
		}
		entry, _, err := event.Entry(15, eventlog.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, entry...)
	}
	_, value, err := (&eventlog.RuntimeEvidence{Log: log}).Replayed()
	if err != nil {
		t.Fatal(err)
	}
	register := 15
	claims := func(more map[string]any) map[string]any {
		out := map[string]any{"pcr15": hex.EncodeToString(value), "pcr14": strings.Repeat("0", 64)}
		for k, v := range more {
			out[k] = v
		}
		return out
	}
	evidence := func(log []byte, pcr *int) string {
		raw, err := eventlog.RuntimeEvidence{Log: log, PCR: pcr}.JSON()
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	events := []any{
		map[string]any{"domain": "coffer", "operation": "PullImage", "content": map[string]any{"container": "web"}},
		map[string]any{"domain": "coffer", "operation": "StartContainer", "content": map[string]any{"container": "web"}},
	}
	for _, raw := range []string{evidence(log, nil), evidence(log, &register)} {
		shared := claims(nil)
		r := &tee.Result{Claims: shared}
		if p := addRuntimeLog(r, []byte(raw)); p != nil {
			t.Fatalf("%s: %v", raw, p)
		}
		if d := cmp.Diff(claims(map[string]any{"runtime_events": events}), r.Claims); d != "" {
			t.Error(d)
		}
		if _, changed := shared["runtime_events"]; changed {
			t.Error("claims that others have were changed")
		}
	}
	other, foreign, empty := 14, 3, []byte(nil)
	for name, tc := range map[string]struct {
		claims map[string]any
		raw    string
		field  string
	}{
		"no log":                      {nil, `{}x`, "aael"},
		"half a log":                  {nil, evidence(log[:len(log)-3], nil), "aael.log"},
		"a register of other events":  {nil, evidence(log, &other), "pcr14"},
		"a register that is not told": {nil, evidence(log, &foreign), "pcr03"},
		"an event held back":          {nil, evidence(empty, &register), "pcr15"},
		"two logs":                    {map[string]any{"runtime_events": []any{}}, evidence(log, nil), "aael"},
	} {
		r := &tee.Result{Claims: claims(tc.claims)}
		p := addRuntimeLog(r, []byte(tc.raw))
		if p == nil || p.Info.Reason == nil || p.Info.Reason.Rule != "aael.log" || p.Info.Reason.Claim != tc.field {
			t.Errorf("%s: %+v, want a refusal about %s", name, p, tc.field)
		}
	}
	// A register that nothing has extended stands behind an empty log.
	if p := addRuntimeLog(&tee.Result{Claims: claims(nil)}, []byte(evidence(nil, &other))); p != nil {
		t.Errorf("an empty log of an empty register: %v", p)
	}
}
