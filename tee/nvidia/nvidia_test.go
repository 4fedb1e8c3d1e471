package nvidia

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/internal/pemchain"
	"github.com/coffer-project/coffer/tee/internal/teetest"
)

func file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func report(t testing.TB, name string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.TrimSpace(string(file(t, name))))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// asJSON is a value as JSON reads it: numbers are float64.
func asJSON(t testing.TB, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGoldenClaims(t *testing.T) {
	t.Parallel()
	p, err := ParseReport(report(t, "hopperAttestationReport.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]any
	if err := json.Unmarshal(file(t, "hopperAttestationReport-claims.txt"), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want["config"], asJSON(t, p.Config())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want["measurements"], asJSON(t, p.Values())); diff != "" {
		t.Error(diff)
	}
	if hex.EncodeToString(p.Nonce[:]) != "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb" || Hopper.Title() != want["arch"] {
		t.Errorf("nonce %x, arch %s", p.Nonce, Hopper.Title())
	}
}

func TestGenerations(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		blocks         int
		version, fwid  string
		driver, chip   string
		nvdec0Disabled bool
	}{
		"hopper580.txt": {64, "96.00.74.00.20", "f1ae7d00", "580.159.03", "GH100", true},
		"blackwell.txt": {64, "97.00.88.00.0f", "d090cab1", "575.32", "GB100", true},
		"ls10.txt":      {31, "96.10.55.00.01", "", "", "LS_10", false},
	} {
		p, err := ParseReport(report(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(p.Measurements) != want.blocks || p.VBIOSVersion() != want.version || p.Text(FieldDriverVersion) != want.driver ||
			!strings.HasPrefix(hex.EncodeToString(p.Field(FieldFWID)), want.fwid) || p.NVDEC0Disabled() != want.nvdec0Disabled {
			t.Errorf("%s: got %d blocks, %+v", name, len(p.Measurements), p.Config())
		}
		certs, err := (&Device{Chain: file(t, strings.TrimSuffix(name, ".txt")+"-chain.pem")}).Certificates()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if id, err := IdentityOf(certs[0]); err != nil || id.Chip != want.chip || len(id.Serial) != 16 {
			t.Errorf("%s: got %+v, %v", name, id, err)
		}
		if _, err := IdentityOf(certs[1]); err == nil {
			t.Errorf("%s: an authority has the identity of a device", name)
		}
	}
}

// The devices of one machine name each other.
func TestTopologyFields(t *testing.T) {
	t.Parallel()
	devices := func(name string) []*Report {
		e, err := parseList(file(t, name))
		if err != nil {
			t.Fatal(err)
		}
		var out []*Report
		for _, d := range e.Devices {
			p, err := ParseReport(d.Report)
			if err != nil {
				t.Fatal(err)
			}
			if c := d.Contradictions(p); c != nil {
				t.Errorf("%s: contradictions: %v", name, c)
			}
			out = append(out, p)
		}
		return out
	}
	var switches []string
	for _, s := range devices("switch_evidence.json") {
		switches = append(switches, s.PDI())
		if s.Switches() != nil || len(s.GPUs()) != 8 {
			t.Errorf("switch %s: %v, %v", s.PDI(), s.Switches(), s.GPUs())
		}
	}
	slices.Sort(switches)
	for _, g := range devices("gpu_evidence.json") {
		if g.PDI() != "" || !slices.Equal(g.Switches(), switches) {
			t.Errorf("GPU: on switches %v, expected %v", g.Switches(), switches)
		}
	}
}

func evidence(t testing.TB) json.RawMessage {
	t.Helper()
	raw, err := (&Evidence{Devices: []Device{{Arch: Hopper, UUID: "u", Report: report(t, "hopperAttestationReport.txt"), Chain: file(t, "hopper_cert_chain_case1.txt")}}}).JSON()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestEvidenceRoundTrip(t *testing.T) {
	t.Parallel()
	e, err := ParseEvidence(evidence(t))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := e.JSON()
	if err != nil || !bytes.Equal(raw, evidence(t)) {
		t.Errorf("got %.100s, %v", raw, err)
	}
	// In hex, and with another spelling of the generation.
	text := strings.TrimSpace(string(file(t, "hopperAttestationReport.txt")))
	chain := base64.StdEncoding.EncodeToString(file(t, "hopper_cert_chain_case1.txt"))
	e, err = ParseEvidence(json.RawMessage(`{"device_evidence_list":[{"arch":"Hopper","evidence":"` + strings.ToUpper(text) + `","certificate":"` + chain + `"}]}`))
	if err != nil || !bytes.Equal(e.Devices[0].Report, report(t, "hopperAttestationReport.txt")) || e.Devices[0].Arch != Hopper || e.Devices[0].UUID != "" {
		t.Errorf("got %v", err)
	}
}

func TestEvidenceRefused(t *testing.T) {
	t.Parallel()
	good := string(evidence(t))
	with := func(old, now string) string { return strings.Replace(good, old, now, 1) }
	device := strings.TrimSuffix(strings.TrimPrefix(good, `{"device_evidence_list":[`), `]}`)
	for name, c := range map[string]struct{ doc, want string }{
		"empty":         {"", "JSON"},
		"no devices":    {`{"device_evidence_list":[]}`, "1 to 32 devices"},
		"none":          {`{}`, "1 to 32 devices"},
		"null":          {`{"device_evidence_list":null}`, "1 to 32 devices"},
		"many":          {`{"device_evidence_list":[` + strings.Repeat(`{"arch":"HOPPER"},`, 32) + `{}]}`, "1 to 32 devices"},
		"twice":         {good + good, "after"},
		"unknown":       {with(`"uuid"`, `"name"`), "name"},
		"duplicate":     {with(`"uuid":"u"`, `"uuid":"u","uuid":"v"`), "uuid"},
		"arch":          {with("HOPPER", "AMPERE"), "arch: expected HOPPER"},
		"no arch":       {with(`"arch":"HOPPER",`, ``), "arch: expected HOPPER"},
		"arch's case":   {with("HOPPER", "hopper"), "arch: expected HOPPER"},
		"uuid":          {with(`"u"`, `"`+strings.Repeat("u", 129)+`"`), "uuid"},
		"control":       {with(`"u"`, `"\u0007"`), "uuid"},
		"version":       {with(`"uuid":"u"`, `"version":"2"`), "version: expected 1.0"},
		"no evidence":   {`{"device_evidence_list":[{"arch":"LS10","evidence":"","certificate":"AA=="}]}`, "evidence: expected something"},
		"bad hex":       {`{"device_evidence_list":[{"arch":"LS10","evidence":"11e0f","certificate":"AA=="}]}`, "evidence: expected hex"},
		"long hex":      {`{"device_evidence_list":[{"arch":"LS10","evidence":"11e0` + strings.Repeat("00", MaxReport) + `","certificate":"AA=="}]}`, "evidence: expected at most"},
		"base64":        {`{"device_evidence_list":[{"arch":"LS10","evidence":"EeA","certificate":"AA=="}]}`, "evidence: expected standard base64"},
		"loose base64":  {`{"device_evidence_list":[{"arch":"LS10","evidence":"EeB=","certificate":"AA=="}]}`, "evidence: expected standard base64"},
		"lines":         {`{"device_evidence_list":[{"arch":"LS10","evidence":"EeAB\n","certificate":"AA=="}]}`, "on one line"},
		"no chain":      {`{"device_evidence_list":[{"arch":"LS10","evidence":"EeAB","certificate":""}]}`, "certificate: expected something"},
		"long chain":    {`{"device_evidence_list":[{"arch":"LS10","evidence":"EeAB","certificate":"` + strings.Repeat("AAAA", MaxChain/3+1) + `"}]}`, "certificate: expected at most"},
		"deep":          {strings.Repeat("[", 100) + strings.Repeat("]", 100), "JSON"},
		"second is bad": {`{"device_evidence_list":[` + device + `,{"arch":"x"}]}`, "device_evidence_list[1].arch"},
		"too long":      {good + strings.Repeat(" ", MaxEvidence), "limit"},
	} {
		_, err := ParseEvidence(json.RawMessage(c.doc))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, expected %q", name, err, c.want)
		}
	}
}

func TestEvidenceCut(t *testing.T) {
	t.Parallel()
	teetest.EachPrefix(evidence(t), func(cut []byte) {
		if _, err := ParseEvidence(cut); err == nil {
			t.Errorf("accepted, cut at %d", len(cut))
		}
	})
}

func TestReportRefused(t *testing.T) {
	t.Parallel()
	good := report(t, "hopperAttestationReport.txt")
	record := int(good[42]) | int(good[43])<<8 | int(good[44])<<16
	opaque := requestSize + headerSize + record + NonceSize
	change := func(at int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], v)
		return b
	}
	for name, c := range map[string]struct {
		raw  []byte
		want string
	}{
		"empty":                {nil, "byte 0: request: SPDM version"},
		"SPDM 1.2":             {change(0, 0x12), "SPDM version"},
		"another request":      {change(1, 0xE1), "request: code"},
		"unsigned":             {change(2, 0), "a signature is asked for"},
		"one measurement":      {change(3, 1), "all measurements are asked for"},
		"slot":                 {change(36, 9), "slot: expected 0 to 7"},
		"another slot":         {change(36, 1), "the slot"},
		"answer's version":     {change(37, 0x10), "response: SPDM version"},
		"error":                {change(38, 0x7F), "response: code"},
		"no blocks":            {change(41, 0), "expected measurements, got none"},
		"fewer blocks":         {change(41, 63), "nothing after 63 blocks"},
		"more blocks":          {change(41, 65), "measurement block 65 of 65"},
		"many blocks":          {change(41, 0xFF), "measurement block 65 of 255"},
		"record too long":      {change(42, 0xFF, 0xFF, 0xFF), "measurement record: expected 16777215 bytes"},
		"record swapped":       {change(42, 0x00, 0x0D, 0xC0), "measurement record"},
		"record shorter":       {change(42, 0xBF), "opaque data"},
		"index zero":           {change(45, 0), "index"},
		"index twice":          {change(45, 2), "index"},
		"another format":       {change(46, 2), "specification"},
		"size":                 {change(47, 0x34), "size"},
		"size swapped":         {change(47, 0x00, 0x33), "size"},
		"value's size":         {change(50, 0x31), "size"},
		"opaque too long":      {change(opaque, 0xFF, 0xFF), "opaque data: expected 65535 bytes"},
		"opaque shorter":       {change(opaque, 0xA5), "opaque data"},
		"field too long":       {change(opaque+4, 0xFF), "vbios_version: expected"},
		"field twice":          {change(opaque+2+12, byte(FieldVBIOSVersion)), "occurs twice"},
		"text":                 {change(opaque+2+12+8+4, 0x07), "chip_sku: expected"},
		"padded":               {append(bytes.Clone(good), 0), "nothing after the signature"},
		"twice":                {append(bytes.Clone(good), good...), "report: expected at most"},
		"longer than possible": {make([]byte, MaxReport+1), "at most"},
	} {
		_, err := ParseReport(c.raw)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, expected %q", name, err, c.want)
		}
	}
	for _, name := range []string{"hopperAttestationReport.txt", "blackwell.txt", "ls10.txt"} {
		teetest.EachPrefix(report(t, name), func(cut []byte) {
			if _, err := ParseReport(cut); err == nil {
				t.Errorf("%s: accepted, cut at %d", name, len(cut))
			}
		})
	}
}

func TestFromRaw(t *testing.T) {
	t.Parallel()
	chain := file(t, "hopper_cert_chain_case1.txt")
	text := file(t, "hopperAttestationReport.txt")
	for name, raw := range map[string][]byte{
		"binary":         append(report(t, "hopperAttestationReport.txt"), chain...),
		"hex":            append(bytes.Clone(text), chain...),
		"hex and a line": append(append(bytes.TrimSpace(text), '\n'), chain...),
	} {
		got, err := FromRaw(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		e, err := ParseEvidence(got)
		if err != nil || len(e.Devices) != 1 || e.Devices[0].Arch != Hopper || !bytes.Equal(e.Devices[0].Chain, chain) || !bytes.Equal(e.Devices[0].Report, report(t, "hopperAttestationReport.txt")) {
			t.Errorf("%s: got %.100s, %v", name, got, err)
		}
	}
	if got, err := FromRaw(file(t, "switch_evidence.json")); err != nil || bytes.Count(got, []byte("LS10")) != 4 {
		t.Errorf("list: got %.100s, %v", got, err)
	}
	for name, raw := range map[string][]byte{
		"report alone": text, "chain alone": chain, "nothing": nil, "something": []byte("something"), "other certificates": append(bytes.Clone(text), file(t, "hopper_cert_chain_case4.txt")...),
		"report and text": append(append(bytes.Clone(text), chain...), "x"...), "list of nothing": []byte("[]"), "cut": append(bytes.Clone(text[:600]), chain...),
		"too long": make([]byte, MaxEvidence+1),
	} {
		if got, err := FromRaw(raw); err == nil {
			t.Errorf("%s: accepted: %.100s", name, got)
		}
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		data []byte
		odd  string
	}{
		"evidence":    {evidence(t), ""},
		"report":      {file(t, "ls10.txt"), "there are no certificates"},
		"binary":      {report(t, "blackwell.txt"), "there are no certificates"},
		"cut":         {report(t, "blackwell.txt")[:1000], "report: byte"},
		"another one": {bytes.Replace(evidence(t), []byte("HOPPER"), []byte("BLACKWELL"), 1), "arch says BLACKWELL, the certificate is of a GH100"},
		"stated":      {bytes.Replace(evidence(t), []byte(`"uuid":"u"`), []byte(`"driver_version":"1"`), 1), "driver_version: the report says 550.90.07"},
		"list":        {file(t, "gpu_evidence.json"), ""},
	} {
		got, err := Inspect(c.data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if odd := strings.Join(got.Odd, "; "); (c.odd == "") != (odd == "") || !strings.Contains(odd, c.odd) {
			t.Errorf("%s: odd: got %q, expected %q", name, odd, c.odd)
		}
		if _, err := json.Marshal(got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, data := range [][]byte{nil, []byte("{}"), []byte("[]"), []byte("hello"), {0x11}} {
		if got, err := Inspect(data); err == nil {
			t.Errorf("%q: got %+v", data, got)
		}
	}
}

// Parsing takes no more memory than a few times its input.
func TestAllocations(t *testing.T) {
	e, err := parseList(file(t, "gpu_evidence.json"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	one := report(t, "hopperAttestationReport.txt")
	for name, c := range map[string]struct {
		size  int
		parse func() error
	}{
		"evidence": {len(raw), func() error { _, err := ParseEvidence(raw); return err }},
		"report":   {len(one), func() error { _, err := ParseReport(one); return err }},
	} {
		if got := teetest.Allocated(t, c.parse); got >= 4*c.size {
			t.Errorf("%s: %d bytes allocated for %d", name, got, c.size)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	for _, name := range []string{"hopperAttestationReport.txt", "blackwell.txt", "ls10.txt"} {
		f.Add(report(f, name))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParseReport(raw)
		if err != nil {
			return
		}
		if len(p.Signed)+len(p.Signature) != len(raw) {
			t.Error("bytes are neither signed nor the signature")
		}
		if _, err := json.Marshal(map[string]any{"c": p.Config(), "v": p.Values(), "s": p.Switches(), "g": p.GPUs(), "p": p.PDI()}); err != nil {
			t.Error(err)
		}
	})
}

func FuzzEvidence(f *testing.F) {
	f.Add([]byte(evidence(f)))
	f.Add(file(f, "hopperAttestationReport.txt"))
	f.Add(append(file(f, "ls10.txt"), file(f, "ls10-chain.pem")...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = Inspect(raw)
		if got, err := FromRaw(raw); err == nil {
			if _, err := ParseEvidence(got); err != nil {
				t.Errorf("what was made is refused: %v", err)
			}
		}
		e, err := ParseEvidence(raw)
		if err != nil {
			return
		}
		again, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if other, err := ParseEvidence(again); err != nil || !cmp.Equal(e, other) {
			t.Errorf("does not survive a round: %v", err)
		}
	})
}

func FuzzIdentity(f *testing.F) {
	certs, err := pemchain.Parse(file(f, "blackwell-chain.pem"))
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range certs[0].Extensions {
		f.Add(e.Value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		if id, err := parseIdentity(value); err == nil && (id.Chip == "" || id.Serial == "") {
			t.Errorf("got %+v", id)
		}
	})
}

func BenchmarkParseReport(b *testing.B) {
	raw := report(b, "hopperAttestationReport.txt")
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseReport(raw); err != nil {
			b.Fatal(err)
		}
	}
}
