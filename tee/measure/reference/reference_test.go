package reference

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/sigstruct"
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
