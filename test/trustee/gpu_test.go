package tests

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/nvidia"
)

// gpu is an emulated H100 under a root of its own.
type gpu struct {
	key   *ecdsa.PrivateKey
	chain []byte // PEM, the device's first
	root  []byte
	// measurements are from index 1.
	measurements [][]byte
	fwid         []byte
}

func p384(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newGPU(t testing.TB) *gpu {
	t.Helper()
	g := &gpu{fwid: bytes.Repeat([]byte{0xF1}, 48)}
	for i := range 64 {
		sum := sha512.Sum384([]byte{byte(i)})
		g.measurements = append(g.measurements, sum[:])
	}
	marshal := func(v any) []byte { return must[[]byte](t)(asn1.Marshal(v)) }
	authority := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	parent, key := authority("development root", 1), p384(t)
	signer := key
	var chain []byte
	for i, name := range []string{"development root", "GH100 Identity", "GH100 Provisioner", "GH100 A01 BROM", "GH100 A01 FMC LF"} {
		template := authority(name, int64(i+1))
		switch i {
		case 0:
			template = parent
		case 3: // the device: its key is in the leaf's extension
			key = p384(t)
			template.Subject.SerialNumber = "410123456789ABCDEF"
			template.SubjectKeyId = bytes.Repeat([]byte{7}, 20)
		case 4:
			// DMTF's name (DSP0274, otherName 1.3.6.1.4.1.412.274.1) and TCG's
			// firmware identifier (2.23.133.5.4.1).
			type otherName struct {
				OID   asn1.ObjectIdentifier
				Value string `asn1:"utf8,explicit,tag:0"`
			}
			type fwid struct {
				OID    asn1.ObjectIdentifier
				Digest []byte
			}
			type composite struct {
				Version int
				Key     asn1.RawValue
				FWID    fwid
			}
			san := must[[]byte](t)(asn1.MarshalWithParams(otherName{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 412, 274, 1}, "NVIDIA:GH100:0123456789ABCDEF"}, "tag:0"))
			device := must[[]byte](t)(x509.MarshalPKIXPublicKey(&signer.PublicKey))
			template.IsCA, template.KeyUsage = false, x509.KeyUsageDigitalSignature
			template.ExtraExtensions = []pkix.Extension{
				{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: marshal([]asn1.RawValue{{FullBytes: san}})},
				{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}, Value: marshal(composite{1, asn1.RawValue{FullBytes: device}, fwid{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, g.fwid}})},
			}
			key = p384(t)
		default:
			key = p384(t)
		}
		der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer))
		parent = must[*x509.Certificate](t)(x509.ParseCertificate(der))
		signer = key
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if i == 0 {
			g.root = text
		}
		chain = append(text, chain...)
	}
	g.key, g.chain = key, chain
	return g
}

// evidence is a signed report (DMTF DSP0274 1.1, GET_MEASUREMENTS) over a nonce
// of 32 bytes.
func (g *gpu) evidence(t testing.TB, nonce []byte) json.RawMessage {
	t.Helper()
	le := binary.LittleEndian
	var record, opaque []byte
	for i, v := range g.measurements {
		record = append(record, byte(i+1), 1)
		record = le.AppendUint16(record, uint16(len(v)+3))
		record = append(record, 1)
		record = le.AppendUint16(record, uint16(len(v)))
		record = append(record, v...)
	}
	for _, f := range []nvidia.Field{
		{Type: nvidia.FieldVBIOSVersion, Data: []byte{0, 0x9F, 0, 0x96, 0x0A, 0, 0, 0}}, {Type: nvidia.FieldChipSKU, Data: []byte("882\x00\x00")},
		{Type: nvidia.FieldProject, Data: []byte("g520\x00")}, {Type: nvidia.FieldProjectSKU, Data: []byte("0200\x00")},
		{Type: nvidia.FieldDriverVersion, Data: []byte("550.90.07\x00")}, {Type: nvidia.FieldNVDEC0Status, Data: []byte{0xAA}}, {Type: nvidia.FieldFWID, Data: g.fwid},
	} {
		opaque = le.AppendUint16(opaque, uint16(f.Type))
		opaque = le.AppendUint16(opaque, uint16(len(f.Data)))
		opaque = append(opaque, f.Data...)
	}
	out := append([]byte{0x11, 0xE0, 1, 0xFF}, nonce...)
	out = append(out, 0, 0x11, 0x60, 0, 0, byte(len(g.measurements)), byte(len(record)), byte(len(record)>>8), byte(len(record)>>16))
	out = append(append(out, record...), make([]byte, 32)...)
	out = append(le.AppendUint16(out, uint16(len(opaque))), opaque...)
	sum := sha512.Sum384(out)
	r, s, err := ecdsa.Sign(rand.Reader, g.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	out = append(append(out, r.FillBytes(make([]byte, 48))...), s.FillBytes(make([]byte, 48))...)
	return must[json.RawMessage](t)((&nvidia.Evidence{Devices: []nvidia.Device{{Arch: nvidia.Hopper, Report: out, Chain: g.chain}}}).JSON())
}

// composite attests a pod together with a GPU's evidence, which device makes for
// the digest that devices are bound to.
func (s *site) composite(device func(digest []byte) json.RawMessage) (string, *kbs.StatusError) {
	s.t.Helper()
	h := s.begin(tee.SNP)
	digest, err := h.att.DeviceDigest("", h.challenge.Nonce)
	s.must(err)
	additional := fmt.Sprintf(`{"nvidia":%s}`, device(digest))
	h.att.Additional = &additional
	h.att.InitData = &kbs.InitData{Format: "toml", Body: document}
	evidence, err := pod(s.t, document, "").Evidence(s.t.Context(), h.digest(""))
	s.must(err)
	return h.attest(s, evidence)
}

// TestComposite: a pod with a GPU attests both in one handshake; both are bound
// to it and appraised on their own, and a resource is released only when both are
// as registered.
func TestComposite(t *testing.T) {
	t.Parallel()
	g, dir := newGPU(t), t.TempDir()
	write(t, filepath.Join(dir, "nvidia.pem"), string(g.root))
	s := launch(t, the.plain, dir, "tee.nvidia.development_roots = [\"nvidia.pem\"]\ntee.nvidia.check_revocation = false\ntee.nvidia.compare_rim = false\n")
	a := s.populate("")
	genuine := func(digest []byte) json.RawMessage { return g.evidence(t, digest[:32]) }
	get := func(token string) answer {
		t.Helper()
		return s.do(s.http(), "GET", "/kbs/v0/resource/demo/key/1", token, "")
	}
	token, e := s.composite(genuine)
	if e != nil {
		t.Fatal(e)
	}
	c := verify(t, s.keys("/.well-known/jwks.json"), token, "coffer-trustee")
	device, ok := c.Submods["gpu0"].Evidence["nvidia"].(map[string]any)
	if !ok || len(c.Submods) != 2 || c.Submods["cpu0"].Evidence["snp"] == nil || device["simulated"] != true || device["development_root"] != "nvidia.pem" {
		t.Fatalf("%+v", c.Submods)
	}
	// Nobody has said which GPU is good.
	if x := get(token); x.status != http.StatusForbidden || !strings.Contains(x.body, "nvidia.measurements") {
		t.Errorf("%d %s", x.status, x.body)
	}
	s.must(
		a.SetReferenceValue(t.Context(), admin.ReferenceValue{Name: "nvidia_gpu_measurement_1", Values: []any{hex.EncodeToString(g.measurements[0])}}),
		a.SetResource(t.Context(), uri(t, "kbs:///demo/key/1"), secret.New([]byte("for both"))),
	)
	if token, e = s.composite(genuine); e != nil {
		t.Fatal(e)
	}
	if x := get(token); x.status != http.StatusOK {
		t.Errorf("both as registered: %d %s", x.status, x.body)
	}
	// Another GPU firmware than the registered one.
	g.measurements[0] = bytes.Repeat([]byte{9}, 48)
	if token, e = s.composite(genuine); e != nil {
		t.Fatal(e)
	}
	if x := get(token); x.status != http.StatusForbidden || !strings.Contains(x.body, "nvidia_gpu_measurement_1") {
		t.Errorf("another firmware: %d %s", x.status, x.body)
	}
	for what, tc := range map[string]struct {
		check  string
		device func([]byte) json.RawMessage
	}{
		"another handshake's nonce": {"nvidia.report_data", func([]byte) json.RawMessage { return g.evidence(t, make([]byte, 32)) }},
		"a changed report": {"nvidia.signature", func(digest []byte) json.RawMessage {
			return flip(t, genuine(digest), "device_evidence_list/0/evidence", 60)
		}},
		"under another root": {"nvidia.chain", func(digest []byte) json.RawMessage { return newGPU(t).evidence(t, digest[:32]) }},
		"no report at all":   {"nvidia.format", func([]byte) json.RawMessage { return json.RawMessage(`{"device_evidence_list":[]}`) }},
	} {
		_, e := s.composite(tc.device)
		if e == nil || e.Status != http.StatusForbidden || !slices.ContainsFunc(e.Info.Reasons, func(r kbs.Reason) bool { return r.Rule == tc.check }) {
			t.Errorf("%s: got %v; want 403 %s", what, e, tc.check)
		}
	}
}
