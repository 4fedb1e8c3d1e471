package tests

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/coffer-project/coffer/internal/trustee/provenance"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// message is one of the reference value provider protocol.
func message(t *testing.T, typ string, payload []byte) []byte {
	t.Helper()
	doc, err := json.Marshal(map[string]string{"version": "0.1.0", "type": typ, "payload": base64.StdEncoding.EncodeToString(payload)})
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// envelope signs an in-toto statement that sets values.
func envelope(t *testing.T, key *ecdsa.PrivateKey, values map[string]any, expires time.Time) []byte {
	t.Helper()
	statement, err := json.Marshal(map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": provenance.ReferenceValues,
		"subject":   []any{map[string]any{"name": "guest.img", "digest": map[string]string{"sha256": strings.Repeat("ab", 32)}}},
		"predicate": map[string]any{"values": values, "expires": expires.UTC().Format(time.RFC3339)},
	})
	if err != nil {
		t.Fatal(err)
	}
	const typ = "application/vnd.in-toto+json"
	sum := sha256.Sum256(dsse.PAE(typ, statement))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(map[string]any{
		"payloadType": typ, "payload": base64.StdEncoding.EncodeToString(statement),
		"signatures": []any{map[string]string{"sig": base64.StdEncoding.EncodeToString(sig)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestReferenceValues: whose word counts, for how long, and what a refusal
// says when it does not count any more.
func TestReferenceValues(t *testing.T) {
	t.Parallel()
	builder, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mallory, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(builder.Public())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "builder.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	s := embed(t, dir, `reference_values.unsigned = ["sample", "corim"]
[[reference_values.signer]]
name = "builder"
keys = ["builder.pem"]
prefixes = ["snp_", "site_"]
tenant = "*"
`)
	a := s.admin("")
	d, _ := digest(t, document)
	s.must(
		a.SetResource(t.Context(), uri(t, "kbs:///demo/key/1"), secret.New([]byte(content))),
		a.Bind(t.Context(), admin.Binding{Resource: "demo", InitData: d}),
	)
	get := func() error {
		_, err := s.good("").Resource(t.Context(), uri(t, "kbs:///demo/key/1"))
		return err
	}
	refused(t, get(), http.StatusForbidden, "snp.launch-measurement")

	// Vouched for by the builder, until tomorrow.
	expires := s.clock.now().Add(24 * time.Hour)
	measured := map[string]any{"snp_launch_measurement": []string{the.measurement}}
	names, err := a.RegisterProvenance(t.Context(), message(t, provenance.InToto, envelope(t, builder, measured, expires)))
	s.must(err)
	if len(names) != 1 || names[0] != "snp_launch_measurement" {
		t.Errorf("names %q", names)
	}
	s.must(get())
	v, err := a.ReferenceValue(t.Context(), "snp_launch_measurement")
	s.must(err)
	if len(v.Entries) != 1 || !strings.Contains(v.Entries[0].Source, "builder") {
		t.Errorf("%+v; want its source", v)
	}

	// Not by others, not altered, not about what is not the builder's.
	evil := map[string]any{"snp_launch_measurement": []string{strings.Repeat("66", 48)}}
	good := envelope(t, builder, evil, expires)
	var parts map[string]any
	s.must(json.Unmarshal(good, &parts))
	raw, err := base64.StdEncoding.DecodeString(parts["payload"].(string))
	s.must(err)
	parts["payload"] = base64.StdEncoding.EncodeToString([]byte(strings.Replace(string(raw), "666666", "676767", 1)))
	altered, err := json.Marshal(parts)
	s.must(err)
	for name, doc := range map[string][]byte{
		"another's signature": envelope(t, mallory, evil, expires),
		"altered":             altered,
		"another's name":      envelope(t, builder, map[string]any{"tdx_mr_td": []string{"x"}}, expires),
	} {
		_, err := a.RegisterProvenance(t.Context(), message(t, provenance.InToto, doc))
		if e := asStatus(err); e == nil || e.Status != http.StatusForbidden {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, doc := range map[string][]byte{
		"unknown format": message(t, "spdx", []byte("{}")), "no JSON": []byte("{"), "no base64": []byte(`{"type":"sample","payload":"%%"}`),
		"no envelope": message(t, provenance.InToto, []byte("{}")), "sample no object": message(t, provenance.Sample, []byte("[]")),
	} {
		_, err := a.RegisterProvenance(t.Context(), doc)
		if e := asStatus(err); e == nil || e.Status != http.StatusBadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Unsigned SWID was not admitted; CoRIM was.
	_, err = a.RegisterProvenance(t.Context(), message(t, provenance.SWID, []byte("<SoftwareIdentity/>")))
	if e := asStatus(err); e == nil || e.Status != http.StatusForbidden && e.Status != http.StatusBadRequest {
		t.Errorf("SWID: %v", err)
	}
	corim, err := os.ReadFile("../../internal/trustee/provenance/testdata/unsigned-example-corim.cbor")
	s.must(err)
	names, err = a.RegisterProvenance(t.Context(), message(t, provenance.CoRIM, corim))
	s.must(err)
	if len(names) == 0 {
		t.Error("CoRIM sets nothing")
	}
	for _, n := range names {
		v, err := a.ReferenceValue(t.Context(), n)
		if err != nil || len(v.Entries) == 0 || !strings.Contains(v.Entries[0].Source, "unsigned") {
			t.Errorf("%s: %+v, %v; want it marked as unsigned", n, v, err)
		}
	}
	_, err = a.RegisterProvenance(t.Context(), message(t, provenance.Sample, []byte(`{"site_b":7,"site_c":["x"]}`)))
	s.must(err)
	s.must(get())

	// The day is over: what expired does not count, and the refusal says so.
	s.clock.advance(25 * time.Hour)
	e := refused(t, get(), http.StatusForbidden, "snp.launch-measurement")
	if !strings.Contains(e.Info.Reason.Expected, "expired") || !strings.Contains(e.Info.Reason.Expected, expires.UTC().Format("2006-01-02")) {
		t.Errorf("reason %+v; want what expired, and when", e.Info.Reason)
	}
	list, err := a.ReferenceHistory(t.Context(), "snp_launch_measurement")
	if err != nil || len(list) != 1 {
		t.Errorf("history %+v, %v", list, err)
	}
	// Vouched for again.
	_, err = a.RegisterProvenance(t.Context(), message(t, provenance.InToto, envelope(t, builder, measured, s.clock.now().Add(time.Hour))))
	s.must(err)
	s.must(get())

	// Lists and scalars: a policy that takes one for the other is refused at
	// upload, and so is a value that a policy in force could not use.
	const text = "package policy\ntrust_claims := {\"executables\": 3} if query_reference_value(\"site_b\") == 7\n"
	_, err = a.SetPolicy(t.Context(), admin.PolicyAttestation, "other_cpu", text)
	s.must(err)
	wrong := strings.Replace(text, `query_reference_value("site_b") == 7`, `7 in query_reference_value("site_b")`, 1)
	_, err = a.SetPolicy(t.Context(), admin.PolicyAttestation, "other_cpu", wrong)
	refused(t, err, http.StatusBadRequest, "site_b")
	err = a.SetReferenceValue(t.Context(), admin.ReferenceValue{Name: "site_b", Values: []any{7}})
	refused(t, err, http.StatusConflict, "site_b")
}
