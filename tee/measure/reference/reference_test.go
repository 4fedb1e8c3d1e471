package reference

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/qemuload"
	"github.com/coffer-project/coffer/tee/measure/sigstruct"
	"github.com/coffer-project/coffer/tee/measure/vtpm"
)

func launch() measure.Launch {
	return measure.Launch{Firmware: make([]byte, 8192), Kernel: []byte("kernel"), Cmdline: "quiet", VCPUModel: "EPYC-v4"}
}

func TestSNP(t *testing.T) {
	t.Parallel()
	p, err := SNP(launch(), []int{3, 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.References) != 1 || p.References[0].Name != "snp_launch_measurement" || len(p.References[0].Values) != 2 || p.TEE != tee.SNP || p.Layout != measure.LayoutSoftware {
		t.Fatalf("got %+v", p)
	}
	for i, n := range []int{3, 1} {
		l := launch()
		l.VCPUs = n
		want, err := measure.SNP(l)
		if err != nil || p.References[0].Values[i].Value != hex.EncodeToString(want[:]) {
			t.Errorf("%d CPUs: got %+v, want %x, %v", n, p.References[0].Values[i], want, err)
		}
	}
	for _, bad := range [][]int{nil, {0}, {1, -1}, {measure.MaxVCPUs + 1}} {
		if _, err := SNP(launch(), bad); err == nil {
			t.Errorf("%v: no error", bad)
		}
	}
}

func TestTDX(t *testing.T) {
	t.Parallel()
	l := measure.TDXLaunch{Firmware: make([]byte, 8192), Kernel: []byte("kernel"), Cmdline: "quiet", Memory: 1 << 30, VCPUs: 1}
	p, err := TDX(l)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(p); got != "mr_td rtmr_0 rtmr_1 rtmr_2" {
		t.Errorf("got %s", got)
	}
	l.RTMR3 = [][48]byte{sha512.Sum384([]byte("x"))}
	if p, err = TDX(l); err != nil || names(p) != "mr_td rtmr_0 rtmr_1 rtmr_2 rtmr_3" {
		t.Errorf("with RTMR3: got %s, %v", names(p), err)
	}
	data, err := p.JSON()
	if err != nil || !strings.Contains(string(data), `"type": "EV_EVENT_TAG"`) || !strings.Contains(string(data), `"memory": 1073741824`) {
		t.Errorf("JSON: %s, %v", data, err)
	}
	l.Memory = 0
	if _, err := TDX(l); err == nil {
		t.Error("no memory: no error")
	}
}

func names(p Prediction) string {
	var s []string
	for _, r := range p.References {
		s = append(s, r.Name)
	}
	return strings.Join(s, " ")
}

func TestSGX(t *testing.T) {
	t.Parallel()
	s := sigstruct.Sigstruct{ProductID: 0x0102, SVN: 3, Date: 0x20260901}
	p, err := SGX(s, SGXBySigner)
	if err != nil || names(p) != "sgx_mr_signer sgx_isv_prod_id sgx_isv_svn" || p.References[1].Values[0].Value != "0201" || p.References[2].Values[0].Value != "0300" {
		t.Errorf("by signer: got %+v, %v", p, err)
	}
	s.Attributes.Flags = sigstruct.FlagKSS
	if p, err = SGX(s, SGXByEnclave); err != nil || names(p) != "sgx_mr_enclave sgx_isv_family_id sgx_isv_ext_prod_id" {
		t.Errorf("by enclave: got %s, %v", names(p), err)
	}
	if _, err := SGX(s, "name"); err == nil {
		t.Error("by name: no error")
	}
}

// kernel is a file with the headers of a Linux kernel with an EFI stub.
func kernel() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x3000)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x46:], 1)
	le.PutUint16(b[0x54:], 160)
	le.PutUint16(b[0x58:], 0x20b)
	le.PutUint32(b[0x58+60:], 0x1000)
	le.PutUint32(b[0x58+108:], 6)
	le.PutUint32(b[0xf8+16:], 0x2000)
	le.PutUint32(b[0xf8+20:], 0x1000)
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	b[0x211] = 1
	return b
}

func TestVTPM(t *testing.T) {
	t.Parallel()
	if _, err := VTPM(vtpm.Launch{Kernel: kernel()}, eventlog.SHA256); err == nil {
		t.Error("no firmware: no error")
	}
	firmware, err := os.ReadFile("/usr/share/OVMF/OVMF_CODE_4M.fd")
	if err != nil {
		t.Skipf("Debian's package ovmf is not installed: %v", err)
	}
	l := vtpm.Launch{Firmware: firmware, Kernel: kernel(), Machine: qemuload.Q35, Memory: 512 << 20}
	p, err := VTPM(l, eventlog.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(p); got != "tpm_pcr01 tpm_pcr02 tpm_pcr03 tpm_pcr04 tpm_pcr05 tpm_pcr06 tpm_pcr07 tpm_pcr09" || len(p.Unknown) != 1 || p.Unknown[0].Name != "tpm_pcr00" {
		t.Errorf("got %s, unknown %v", got, p.Unknown)
	}
	// A separator alone.
	want := sha256.Sum256(make([]byte, 4))
	want = sha256.Sum256(append(make([]byte, 32), want[:]...))
	if got := p.References[1].Values[0].Value; got != hex.EncodeToString(want[:]) {
		t.Errorf("PCR 2: got %s, want %x", got, want)
	}
	data, err := p.JSON()
	if err != nil || !strings.Contains(string(data), `"digest": null`) || !strings.Contains(string(data), `"register": "pcr09"`) {
		t.Errorf("JSON: %s, %v", data, err)
	}
	l.PEIVolume = []eventlog.Digest{{Alg: eventlog.SHA256, Value: make([]byte, 32)}}
	if p, err = VTPM(l, eventlog.SHA256); err != nil || len(p.Unknown) != 0 || !strings.HasPrefix(names(p), "tpm_pcr00 ") {
		t.Errorf("with the PEI volume: got %s, unknown %v, %v", names(p), p.Unknown, err)
	}
}

func TestMessage(t *testing.T) {
	t.Parallel()
	p := Prediction{}
	p.add("a", []byte{1}, "")
	p.add("b", []byte{2}, "")
	p.add("a", []byte{3}, "")
	data, err := p.Message()
	if err != nil {
		t.Fatal(err)
	}
	var m struct{ Version, Type, Payload string }
	if err := json.Unmarshal(data, &m); err != nil || m.Version != "0.1.0" || m.Type != "sample" {
		t.Fatalf("got %s, %v", data, err)
	}
	if payload, err := base64.StdEncoding.DecodeString(m.Payload); err != nil || string(payload) != `{"a":["01","03"],"b":["02"]}` {
		t.Errorf("payload %s, %v", payload, err)
	}
	if _, err := (Prediction{}).Message(); err == nil {
		t.Error("nothing: no error")
	}
}

func TestCoRIM(t *testing.T) {
	t.Parallel()
	p, err := SNP(launch(), []int{1, 2})
	if err != nil {
		t.Fatal(err)
	}
	one, err := p.CoRIM(time.Time{})
	if err != nil || !bytes.HasPrefix(one, []byte{0xd9, 0x01, 0xf5}) { // #6.501
		t.Fatalf("got %x, %v", one, err)
	}
	two, err := p.CoRIM(time.Time{})
	if err != nil || !bytes.Equal(one, two) {
		t.Errorf("differs from run to run, %v", err)
	}
	if _, err := (Prediction{}).CoRIM(time.Time{}); err == nil {
		t.Error("nothing: no error")
	}
	p.add("short", []byte{1}, "")
	p.add("short", []byte{2}, "")
	if _, err := p.CoRIM(time.Time{}); err == nil || !strings.Contains(err.Error(), "short") {
		t.Errorf("two short values: got %v", err)
	}
	p.References[0].Values[0].Value = "no hex"
	if _, err := p.CoRIM(time.Time{}); err == nil {
		t.Error("no hex: no error")
	}
}
