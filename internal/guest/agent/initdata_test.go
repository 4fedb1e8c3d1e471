package agent

import (
	"bytes"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/guest/attestation"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tpm"
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
		got, _, err := checkInitdata(facts, gz)
		if (err == nil) != bytes.Equal(got, raw) {
			t.Fatalf("%q, %v", got, err)
		}
		if got, _, err := checkInitdata(attestation.Facts{TEE: tee.SNP, InitData: make([]byte, 32)}, gz); len(gz) > 0 && err == nil {
			t.Fatalf("launched without initdata: %q was taken", got)
		}
	})
}

// Where initdata is measured into a TPM, the register decides.
func TestMeasuredInitdata(t *testing.T) {
	t.Parallel()
	document := func(algorithm string) (gz, digest []byte) {
		raw := []byte("version = \"0.1.0\"\nalgorithm = \"" + algorithm + "\"\n[data]\n")
		_, digest, err := initdata.Digest(raw)
		if err != nil {
			t.Fatal(err)
		}
		if gz, err = initdata.Compress(raw); err != nil {
			t.Fatal(err)
		}
		return gz, digest
	}
	gz, digest := document(initdata.SHA256)
	long, _ := document(initdata.SHA384)
	zero, extended := make([]byte, 32), tpm.Extended([32]byte(digest))
	for name, tt := range map[string]struct {
		register, gz []byte
		got          string // of the refusal; empty: taken
		help         string
	}{
		"first":                 {zero, gz, "", ""},
		"again":                 {extended[:], gz, "", ""},
		"the digest itself":     {digest, gz, "sha256 ", "start the machine again"},
		"something else":        {bytes.Repeat([]byte{1}, 32), gz, "sha256 ", "start the machine again"},
		"sha384":                {zero, long, "sha384 ", "algorithm = \"sha256\""},
		"none, but bound":       {extended[:], nil, "none", ""},
		"none, something in it": {bytes.Repeat([]byte{1}, 32), nil, "none", ""},
	} {
		raw, got, err := checkInitdata(attestation.Facts{TEE: tee.TPM, InitData: tt.register, Measured: true}, tt.gz)
		if tt.got == "" {
			if err != nil || raw == nil || !bytes.Equal(got, digest) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if r := refusalOf(err); r == nil || r.Rule != RuleInitdata || !strings.HasPrefix(r.Got, tt.got) || !strings.Contains(r.Help, tt.help) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if raw, got, err := checkInitdata(attestation.Facts{TEE: tee.TPM, InitData: zero, Measured: true}, nil); raw != nil || got != nil || err != nil {
		t.Errorf("a pod without initdata: %v", err)
	}
}

// A document that is valid and belongs to the machine must also be complete.
func TestInitdataMustBeComplete(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]map[string]string{
		"no policy":      {initdata.KeyAA: ""},
		"bad policy":     {initdata.KeyPodPolicy: `{"apiVersion":"coffer/v1"}`},
		"two policies":   {initdata.KeyPodPolicy: `{}`, initdata.KeyPolicyRego: "package agent_policy"},
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
