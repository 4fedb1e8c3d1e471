package agent

import (
	"bytes"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/guest/attestation"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/tee"
)

// FuzzInitdata: whatever a host sends, only the document that the evidence
// names is used.
func FuzzInitdata(f *testing.F) {
	raw := []byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"\"\n")
	_, digest, err := initdata.Digest(raw)
	if err != nil {
		f.Fatal(err)
	}
	good, err := initdata.Compress(raw)
	if err != nil {
		f.Fatal(err)
	}
	other, err := initdata.Compress(append(raw, '\n'))
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{good, other, good[:10], nil} {
		f.Add(seed)
	}
	facts := attestation.Facts{TEE: tee.SNP, InitData: digest}
	f.Fuzz(func(t *testing.T, gz []byte) {
		got, err := checkInitdata(facts, gz)
		if (err == nil) != bytes.Equal(got, raw) {
			t.Fatalf("%q, %v", got, err)
		}
		if got, err := checkInitdata(attestation.Facts{TEE: tee.SNP, InitData: make([]byte, 32)}, gz); len(gz) > 0 && err == nil {
			t.Fatalf("launched without initdata: %q was taken", got)
		}
	})
}

// A document that is valid and belongs to the machine must also be complete.
func TestInitdataMustBeComplete(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]map[string]string{
		"no policy":      {initdata.KeyAA: ""},
		"bad policy":     {initdata.KeyPodPolicy: `{"apiVersion":"coffer/v1"}`},
		"Kata's policy":  {initdata.KeyPodPolicy: `{}`, initdata.KeyPolicyRego: "package agent_policy"},
		"no JSON at all": {initdata.KeyPodPolicy: "allow everything"},
	} {
		raw, err := (&initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA384, Data: data}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		sb := &sandbox{}
		err = sb.readInitdata(raw, &BrokerConfig{})
		if r := refusalOf(err); r == nil || r.Rule != RuleInitdataContent || sb.guard != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A misspelt entry is refused: left out without a word, it could be the one that
// demands signatures.
func TestInitdataWithAnUnknownEntry(t *testing.T) {
	t.Parallel()
	policy := `{"apiVersion":"coffer/v1","kind":"PodPolicy","pod":{"name":"pod"},"containers":[{"name":"web","image":{"digest":"sha256:` +
		strings.Repeat("a", 64) + `","from":["registry.example/web"]},"args":["/web"]}]}`
	read := func(data map[string]string) error {
		raw, err := (&initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: data}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		return (&sandbox{}).readInitdata(raw, &BrokerConfig{})
	}
	if err := read(map[string]string{initdata.KeyPodPolicy: policy}); err != nil {
		t.Fatalf("without it: %v", err)
	}
	err := read(map[string]string{initdata.KeyPodPolicy: policy, "chd.toml": ""})
	if r := refusalOf(err); r == nil || r.Path != "initdata.data" || !strings.Contains(r.Got, "chd.toml") {
		t.Errorf("with it: %v", err)
	}
}

func TestPublicRefusal(t *testing.T) {
	t.Parallel()
	r := &podpolicy.Refusal{Rule: podpolicy.RuleContainerArgs, Path: "args[0]", Expected: "secret plan", Got: "\xff", Help: "help"}
	a := func(simulated bool) *Agent {
		return &Agent{o: Options{Attestation: factsSource(t, simulated)}}
	}
	if got := a(false).public(t.Context(), r); got.GetRule() == "" || got.GetPath() == "" || got.GetExpected()+got.GetGot()+got.GetHelp() != "" {
		t.Errorf("to the host of a real TEE: %v", got)
	}
	if got := a(true).public(t.Context(), r); got.GetExpected() != "secret plan" || got.GetGot() != "\uFFFD" {
		t.Errorf("to the host of a simulated TEE: %v", got)
	}
}
