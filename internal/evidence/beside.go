package evidence

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/coffer-project/coffer/tee/nvidia"
	"github.com/coffer-project/coffer/tee/snp"
)

// Limits on the files beside evidence.
const (
	maxBeside     = 256
	maxBesideFile = 64 << 10
	maxWays       = 16
)

// readBeside reads small files: those named, and those in directories named.
// Larger ones, and what lies deeper, is left out.
func readBeside(names []string) ([][]byte, error) {
	var out [][]byte
	for _, name := range names {
		files := []string{name}
		if info, err := os.Stat(name); err != nil {
			return nil, err
		} else if info.IsDir() {
			entries, err := os.ReadDir(name)
			if err != nil {
				return nil, err
			}
			files = files[:0]
			for _, e := range entries {
				files = append(files, filepath.Join(name, e.Name()))
			}
		}
		for _, file := range files {
			info, err := os.Stat(file)
			if err != nil || !info.Mode().IsRegular() || info.Size() > maxBesideFile || len(out) == maxBeside {
				continue
			}
			data, err := readSmall(file, maxBesideFile)
			if err != nil {
				return nil, err
			}
			out = append(out, data)
		}
	}
	return out, nil
}

// readSmall reads a file of at most limit bytes.
func readSmall(file string, limit int64) ([]byte, error) {
	f, err := os.Open(filepath.Clean(file))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: expected at most %d bytes", file, limit)
	}
	return data, err
}

// withVLEK puts VLEK certificates behind a bare report that a VLEK signed, as
// the host's certificate table would have them: AMD gives them to cloud providers
// only, so that no service can be asked.
func withVLEK(report []byte, files [][]byte) [][]byte {
	if len(report) != snp.ReportSize {
		return nil
	}
	r, err := snp.DecodeReport(report)
	if err != nil || r.Signer() != snp.SignerVLEK {
		return nil
	}
	var out [][]byte
	for _, f := range files {
		if block, _ := pem.Decode(f); block != nil && block.Type == "CERTIFICATE" {
			f = block.Bytes
		}
		c, err := x509.ParseCertificate(f)
		if err != nil || !strings.HasPrefix(c.Subject.CommonName, "SEV-VLEK") || len(out) == maxWays {
			continue
		}
		table, err := snp.EncodeCertTable([]snp.Certificate{{Type: snp.CertVLEK, Data: f}})
		if err == nil {
			out = append(out, append(bytes.Clone(report), table...))
		}
	}
	return out
}

// withDeviceChain puts the certificate chains of NVIDIA's devices behind a bare
// report.
func withDeviceChain(report []byte, files [][]byte) [][]byte {
	const start = "-----BEGIN CERTIFICATE-----"
	if bytes.Contains(report, []byte(start)) || bytes.HasPrefix(bytes.TrimSpace(report), []byte("[")) {
		return nil
	}
	var out [][]byte
	for _, f := range files {
		i := bytes.Index(f, []byte(start))
		if i < 0 || len(out) == maxWays {
			continue
		}
		block, _ := pem.Decode(f[i:])
		if block == nil {
			continue
		}
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue
		}
		if _, err := nvidia.IdentityOf(leaf); err == nil {
			out = append(out, append(bytes.Clone(report), f[i:]...))
		}
	}
	return out
}
