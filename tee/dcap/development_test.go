package dcap_test

import (
	"bytes"
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
)

// developmentFile is a root's file with everything that there may be.
func developmentFile(t testing.TB) ([]byte, *dcap.Static, *dcaptest.World) {
	t.Helper()
	w := dcaptest.New(t, dcap.TDX)
	s := w.Collateral(t)
	file, err := dcap.EncodeDevelopmentRoot(w.Authority.Root.Certificate, s)
	if err != nil {
		t.Fatal(err)
	}
	return file, s, w
}

func TestDevelopmentRoot(t *testing.T) {
	t.Parallel()
	file, s, w := developmentFile(t)
	for name, text := range map[string][]byte{
		"as written":    file,
		"no line end":   bytes.TrimSpace(file),
		"windows lines": bytes.ReplaceAll(file, []byte("\n"), []byte("\r\n")),
	} {
		d, err := dcap.ParseDevelopmentRoot("soft", text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d.Name != "soft" || !bytes.Equal(d.PEM, w.Authority.RootPEM()) {
			t.Errorf("%s: %q, %s", name, d.Name, d.PEM)
		}
		if diff := cmp.Diff(s, d.Collateral); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}

	bare, err := dcap.EncodeDevelopmentRoot(w.Authority.Root.Certificate, nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dcap.ParseDevelopmentRoot("bare", bare)
	if err != nil || d.Collateral != nil || !bytes.Equal(d.PEM, w.Authority.RootPEM()) {
		t.Errorf("bare: %+v, %v", d, err)
	}
}

func TestDevelopmentRootRefused(t *testing.T) {
	t.Parallel()
	file, _, _ := developmentFile(t)
	other, _, _ := developmentFile(t)
	blocks, foreign := split(t, file), split(t, other)
	find := func(kind string) int {
		return slices.IndexFunc(blocks, func(b *pem.Block) bool { return b.Type == kind })
	}
	tcb, qe := find("TCB INFO"), find("QE IDENTITY")
	flip := func(i int) []*pem.Block {
		out := slices.Clone(blocks)
		b := *blocks[i]
		b.Bytes = bytes.Clone(b.Bytes)
		b.Bytes[len(b.Bytes)/2] ^= 1
		out[i] = &b
		return out
	}
	for _, tc := range []struct {
		name string
		file []byte
		want string
	}{
		{"nothing", nil, "expected a root certificate"},
		{"no PEM", []byte("root"), "expected PEM"},
		{"text in front", append([]byte("root:\n"), file...), "nothing in between"},
		{"text behind", append(bytes.Clone(file), "end\n"...), "expected PEM"},
		{"too long", append(bytes.Clone(file), make([]byte, dcap.MaxDevelopmentRoot)...), "at most"},
		{"too many", join(slices.Repeat(blocks[:1], 65)), "at most 64 PEM blocks"},
		{"mixed lines", bytes.Replace(file, []byte("\n"), []byte("\r\n"), 3), "end alike"},
		{"headers", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"Kind": "root"}, Bytes: blocks[0].Bytes}), "without headers"},
		{"root missing", join(blocks[1:]), "expected the root"},
		{"two roots", join(slices.Insert(slices.Clone(blocks), 1, foreign[0])), "CERTIFICATE"},
		{"no self-signed root", pem.EncodeToMemory(blocks[tcb+1]), "self-signed"},
		{"another root", join(append(foreign[:1:1], blocks[1:]...)), "issuer chain"},
		{"signer missing", join(slices.Delete(slices.Clone(blocks), tcb+1, tcb+2)), "signer's certificate"},
		{"TCB info twice", join(slices.Insert(slices.Clone(blocks), len(blocks), blocks[tcb:tcb+2]...)), "once"},
		{"root's list twice", join(slices.Insert(slices.Clone(blocks), len(blocks), blocks[len(blocks)-1])), "once"},
		{"an identity as TCB info", join(slices.Insert(slices.Clone(blocks), len(blocks), &pem.Block{Type: "TCB INFO", Bytes: blocks[qe].Bytes}, blocks[qe+1])), "TCB INFO"},
		{"a private key", join(slices.Insert(slices.Clone(blocks), len(blocks), &pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}, blocks[qe+1])), "expected TCB INFO"},
		{"TCB info changed", join(flip(tcb)), "TCB INFO"},
		{"identity changed", join(flip(qe)), "QE IDENTITY"},
		{"root's list changed", join(flip(len(blocks) - 1)), "X509 CRL"},
		{"another's list", join(append(slices.Clone(blocks[:len(blocks)-1]), foreign[len(foreign)-1])), "no root signed it"},
	} {
		d, err := dcap.ParseDevelopmentRoot("soft", tc.file)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), `"soft"`) {
			t.Errorf("%s: got %v, want an error with %q and the name", tc.name, err, tc.want)
		}
		if d.PEM != nil || d.Collateral != nil {
			t.Errorf("%s: a root beside the error", tc.name)
		}
	}
	if _, err := dcap.ParseDevelopmentRoot("", file); err == nil {
		t.Error("a root without a name was taken")
	}
}

func split(t testing.TB, file []byte) (out []*pem.Block) {
	t.Helper()
	for len(file) > 0 {
		var b *pem.Block
		if b, file = pem.Decode(file); b == nil {
			t.Fatal("no PEM")
		}
		out = append(out, b)
	}
	return out
}

func join(blocks []*pem.Block) (out []byte) {
	for _, b := range blocks {
		out = append(out, pem.EncodeToMemory(b)...)
	}
	return out
}

func FuzzParseDevelopmentRoot(f *testing.F) {
	file, _, _ := developmentFile(f)
	f.Add(file)
	f.Add(join(split(f, file)[:1]))
	f.Add(file[:len(file)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := dcap.ParseDevelopmentRoot("fuzz", data)
		if err != nil {
			if d.PEM != nil || d.Collateral != nil {
				t.Fatal("both a root and an error")
			}
			return
		}
		if _, err := dcap.Roots(d); err != nil {
			t.Fatalf("no verifier takes it: %v", err)
		}
	})
}
