package sealed

import (
	"strings"
	"testing"
)

func TestInspect(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		text    string
		signed  bool
		payload bool
		want    []string
	}{
		"good vault":      {signed(t, header, vault), true, true, nil},
		"plain":           {"hunter2", false, false, []string{"does not begin with sealed."}},
		"legacy":          {"sealed.fakejwsheader." + b64(vault) + ".fakesignature", false, true, []string{"coffer secret seal"}},
		"payload only":    {"sealed." + b64(vault), false, true, []string{"coffer secret seal"}},
		"five parts":      {"sealed.a.b.c.d", false, false, []string{"4 parts"}},
		"too long":        {"sealed." + strings.Repeat("a", MaxBytes), false, false, []string{"at most"}},
		"alg":             {signed(t, `{"alg":"HS256","kid":"k"}`, vault), false, true, []string{`got "HS256"`}},
		"kid":             {signed(t, `{"alg":"ES256","kid":"key"}`, vault), true, true, []string{"header.kid: kbs: resource URI"}},
		"signature":       {"sealed." + b64(header) + "." + b64(vault) + ".AA", false, true, []string{"signature: expected 64 bytes"}},
		"payload":         {signed(t, header, "hello"), true, false, []string{"payload: expected a JSON object"}},
		"no annotations":  {signed(t, header, strings.Replace(vault, `,"annotations":{}`, "", 1)), true, true, []string{"payload.annotations: must be an object"}},
		"name":            {signed(t, header, strings.Replace(vault, "kbs:///one/2/trois", "secret", 1)), true, true, []string{"payload.name: kbs: resource URI"}},
		"provider":        {signed(t, header, strings.Replace(vault, `"kbs"`, `"ehsm"`, 1)), true, true, []string{"payload.provider: expected"}},
		"kbs settings":    {signed(t, header, strings.Replace(vault, `settings":{}`, `settings":{"x":1}`, 1)), true, true, []string{"provider_settings: JSON x"}},
		"aws envelope":    {signed(t, header, envelope), true, true, []string{"payload.iv: expected 12 bytes"}},
		"kbs envelope":    {signed(t, header, strings.Replace(envelope, `"aws","provider_settings":{"region":"eu-west-1"}`, `"kbs","provider_settings":{}`, 1)), true, true, []string{"payload.iv", "payload.key_id", "payload.annotations.iv"}},
		"everything":      {"sealed." + b64(`{"alg":"ES256","kid":"x"}`) + "." + b64(strings.Replace(vault, "0.1.0", "9", 1)) + ".AA", false, true, []string{"header.kid", "signature", "payload.version"}},
		"sample envelope": {signed(t, header, string(read(t, "envelope-1.json"))), true, true, []string{"encrypted_", "encrypted_", "payload.iv"}},
	} {
		got := Inspect(tt.text)
		if got.Signed != tt.signed || (got.Payload != nil) != tt.payload || len(got.Problems) != len(tt.want) {
			t.Errorf("%s: got %+v", name, got)
			continue
		}
		for i, want := range tt.want {
			if !strings.Contains(got.Problems[i], want) {
				t.Errorf("%s: problem %d: got %q, want %q", name, i, got.Problems[i], want)
			}
		}
		// What has no problem is parsed, and the other way round unless only
		// what is inside was wrong.
		if _, err := Parse(tt.text); err != nil && len(got.Problems) == 0 {
			t.Errorf("%s: no problem, but %v", name, err)
		}
	}
}

func TestKeyID(t *testing.T) {
	t.Parallel()
	for doc, want := range map[string]string{string(read(t, "test-key.json")): "test-key", "{}": "", "x": "", `{"kid":1}`: ""} {
		if got := KeyID([]byte(doc)); got != want {
			t.Errorf("%.20s: got %q", doc, got)
		}
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(signed(f, header, vault))
	f.Add(signed(f, header, envelope))
	f.Add("sealed." + b64(vault))
	f.Fuzz(func(t *testing.T, in string) {
		got := Inspect(in)
		if _, err := Parse(in); err != nil && len(got.Problems) == 0 {
			t.Fatalf("no problem, but %v", err)
		}
	})
}
