package azureattest_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/azure/azureattest"
	"github.com/coffer-project/coffer/tee/internal/swtpm"
	"github.com/coffer-project/coffer/tee/internal/teetest/swtpmtest"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/softtee"
	"github.com/coffer-project/coffer/tee/softtee/softport"
	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
)

func start(t *testing.T) *swtpm.TPM {
	t.Helper()
	s := swtpmtest.Start(t)
	if _, err := tpmattest.CreateKey(s, tpmattest.Endorsement, tpmattest.RSA2048, azureattest.HandleAK); err != nil {
		t.Fatal(err)
	}
	return s
}

const reportSize = 2048

type paravisor struct {
	transport.TPM
	t        *testing.T
	kind     azure.ReportType
	hardware func(reportData [64]byte) ([]byte, error)

	delay   int // readings of the old report after user data were written
	pending int // of them left; below zero: no user data
}

func (p *paravisor) power() {
	p.pending = -1
	p.report(make([]byte, azure.UserDataSize))
}

func (p *paravisor) report(userData []byte) {
	p.t.Helper()
	key, err := tpmattest.ReadKey(p.TPM, azureattest.HandleAK)
	if err != nil {
		p.t.Fatal(err)
	}
	spki, err := key.SPKI()
	if err != nil {
		p.t.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		p.t.Fatal(err)
	}
	ak, ok := public.(*rsa.PublicKey)
	if !ok {
		p.t.Fatalf("attestation key: %T", public)
	}
	number := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.Bytes()) }
	claims := fmt.Sprintf(`{"keys":[{"kid":"HCLAkPub","key_ops":["sign"],"kty":"RSA","e":%q,"n":%q}],"vm-configuration":{"secure-boot":true},"user-data":"%X"}`,
		number(big.NewInt(int64(ak.E))), number(ak.N), tee.Fit(userData, azure.UserDataSize))
	sum := sha256.Sum256([]byte(claims))
	hardware, err := p.hardware([64]byte(tee.Fit(sum[:], 64)))
	if err != nil {
		p.t.Fatal(err)
	}
	raw, err := (&azure.Report{Version: 2, Type: p.kind, Hardware: hardware, VarData: []byte(claims)}).Bytes(reportSize)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := tpmattest.WriteNV(p.TPM, azureattest.IndexReport, raw); err != nil {
		p.t.Fatal(err)
	}
}

func (p *paravisor) Send(command []byte) ([]byte, error) {
	const nvWrite, nvReadPublic = 0x137, 0x169
	code := binary.BigEndian.Uint32(command[6:])
	if code == nvReadPublic && binary.BigEndian.Uint32(command[10:]) == azureattest.IndexReport && p.pending >= 0 {
		if p.pending--; p.pending < 0 {
			userData, err := tpmattest.ReadNV(p.TPM, azureattest.IndexUserData)
			if err != nil {
				return nil, err
			}
			p.report(userData)
		}
	}
	out, err := p.TPM.Send(command)
	if code == nvWrite && binary.BigEndian.Uint32(command[14:]) == azureattest.IndexUserData {
		p.pending = p.delay
	}
	return out, err
}

var chip = sync.OnceValues(func() (*softtee.Processor, error) {
	dir, err := os.MkdirTemp("", "coffer-azureattest-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	return softtee.LoadOrCreate(dir, rand.Reader, now().AddDate(0, -1, 0))
})

func snpGuest(t *testing.T) (*softtee.Processor, *softtee.Guest, []byte) {
	t.Helper()
	p, err := chip()
	if err != nil {
		t.Fatal(err)
	}
	g, err := p.Launch(measure.Launch{Firmware: make([]byte, 8192), Kernel: []byte("kernel"), Initrd: []byte("initrd"), VCPUs: 1, VCPUModel: "EPYC-v4"}, softtee.Policy{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	raw, err := softport.New(func(context.Context) (io.ReadWriteCloser, error) {
		ours, theirs := net.Pipe()
		go func() { _ = g.Serve(ctx, theirs) }()
		return ours, nil
	}).Evidence(ctx, []byte("certificate"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := snp.ParseEvidence(raw)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := e.Certificate(snp.CertVCEK)
	if !ok {
		t.Fatal("the chip has no VCEK")
	}
	return p, g, c.Data
}

func service(t *testing.T, vcek []byte, quote func(report []byte) []byte) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metadata/THIM/amd/certification", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata") != "true" {
			http.Error(w, "Bad request. Required metadata header not specified", http.StatusBadRequest)
			return
		}
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: vcek}))
		_ = json.NewEncoder(w).Encode(map[string]string{"vcekCert": text, "certificateChain": text, "tcbm": "DB18000000000004"})
	})
	mux.HandleFunc("POST /acc/tdquote", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Report string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		report, err := base64.RawURLEncoding.DecodeString(in.Report)
		if err != nil || len(report) != azure.TDReportSize {
			http.Error(w, fmt.Sprint("report: ", err, len(report)), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"quote": base64.RawURLEncoding.EncodeToString(quote(report))})
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}
