package azureverify

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/pemchain"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/tdx"
)

func snpHardware(v ReportVerifier) hardware {
	return func(ctx context.Context, l *checks.List, e *azure.Evidence, r *azure.Report) ([]byte, map[string]any, bool) {
		vcek, err := vcekOf(e)
		if err != nil {
			l.Fail(tee.Failure{Check: "az-snp-vtpm.format", Field: "vcek", Expected: "one certificate", Got: err.Error()})
			return nil, nil, false
		}
		report, claims, simulated := v.VerifyReport(ctx, l, r.Hardware, []snp.Certificate{{Type: snp.CertVCEK, Data: vcek}})
		if report == nil {
			return nil, nil, false
		}
		// The guest runs above the paravisor: only level 0 is the latter's.
		if report.VMPL != 0 {
			l.Fail(tee.Failure{Check: "az-snp-vtpm.vmpl", Field: "vmpl", Expected: "0", Got: fmt.Sprint(report.VMPL), Help: "the report is not the paravisor's"})
		}
		return report.ReportData[:], asStrings(claims, report), simulated
	}
}

// vcekOf is the certificate as DER. In version 0 it is PEM.
func vcekOf(e *azure.Evidence) ([]byte, error) {
	if e.VCEKPEM == nil {
		return e.VCEK, nil
	}
	certs, err := pemchain.Split(e.VCEKPEM)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("%d certificates", len(certs))
	}
	return certs[0], nil
}

// asStrings writes every claim of an SNP report as a string, and the byte
// strings that relying parties know in base64, as the confidential containers'
// attestation service does for this environment and for no other.
func asStrings(claims map[string]any, r *snp.Report) map[string]any {
	out := make(map[string]any, len(claims)+16)
	for name, value := range claims {
		if s, ok := value.(string); ok {
			out[name] = s
		} else {
			out[name] = fmt.Sprint(value)
		}
	}
	out["measurement"] = base64.StdEncoding.EncodeToString(r.Measurement[:])
	return out
}

func tdxHardware(v QuoteVerifier) hardware {
	return func(ctx context.Context, l *checks.List, e *azure.Evidence, r *azure.Report) ([]byte, map[string]any, bool) {
		// Azure's service leaves zeros behind the quote.
		q, claims, simulated := v.VerifyQuote(ctx, l, tdx.Trim(e.TDQuote))
		if q == nil {
			return nil, nil, false
		}
		if err := sameTD(q, r); err != nil {
			l.Fail(tee.Failure{Check: "az-tdx-vtpm.hcl_report", Field: "hcl_report: TDX report", Expected: "the report that was quoted", Got: err.Error(), Help: "report and quote are of different machines or times"})
		}
		if claims == nil {
			claims = map[string]any{}
		}
		return q.ReportData[:], claims, simulated
	}
}

// sameTD compares the TDX report with the quote that was made of it. The report
// itself proves nothing outside of its machine; it is compared so that there is
// nothing in the evidence that is not vouched for.
func sameTD(q *tdx.Quote, r *azure.Report) error {
	info := make([]byte, 0, len(r.TDInfo()))
	info = binary.LittleEndian.AppendUint64(info, uint64(q.TDAttributes))
	info = binary.LittleEndian.AppendUint64(info, q.XFAM)
	for _, field := range [][48]byte{q.MRTD, q.MRConfigID, q.MROwner, q.MROwnerConfig, q.RTMR[0], q.RTMR[1], q.RTMR[2], q.RTMR[3]} {
		info = append(info, field[:]...)
	}
	switch {
	case !bytes.Equal(info, r.TDInfo()):
		return errors.New("other TD measurements or attributes")
	case !bytes.Equal(q.ReportData[:], r.TDReportData()):
		return errors.New("report data " + hex.EncodeToString(r.TDReportData()))
	}
	return nil
}
