package cli_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/coffer-project/coffer/internal/trustee/provenance"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/reference"
)

// mkkey384 makes a P-384 private key (SEC 1): mkkey384 FILE.
func mkkey384(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: mkkey384 FILE")
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	ts.Check(err)
	der, err := x509.MarshalECPrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600))
}

// mkfirmware makes a firmware image of 64 KiB with the metadata of SEV-SNP (snp)
// or TDX (tdx), or with none (plain): mkfirmware FILE snp|tdx|plain.
func mkfirmware(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: mkfirmware FILE snp|tdx|plain")
	}
	const size = 64 << 10
	le := binary.LittleEndian
	image := make([]byte, size)
	words := func(n ...uint32) (b []byte) {
		for _, v := range n {
			b = le.AppendUint32(b, v)
		}
		return b
	}
	guid := func(hex string) []byte { // as written, to the byte order of EFI
		n, ok := new(big.Int).SetString(strings.ReplaceAll(hex, "-", ""), 16)
		if !ok {
			ts.Fatalf("bad GUID")
		}
		b := n.FillBytes(make([]byte, 16))
		slices.Reverse(b[0:4])
		slices.Reverse(b[4:6])
		slices.Reverse(b[6:8])
		return b
	}
	entry := func(id string, data []byte) []byte {
		return append(le.AppendUint16(data, uint16(len(data)+18)), guid(id)...)
	}
	var table []byte
	switch args[1] {
	case "snp":
		copy(image[size-0x400:], append([]byte("ASEV"), words(16+2*12, 1, 2, 0x800000, 0x9000, 1, 0x810000, 0x1000, 0x10)...))
		table = slices.Concat(entry("dc886566-984a-4798-a75e-5585a7bf67cc", words(0x400)), entry("7255371f-3a3b-4b04-927b-1da6efa8d454", words(0x810c00, 0x400)), entry("00f771de-1a7e-4fcb-890e-68c77e2fb44e", words(0x80b004)))
	case "tdx":
		data := append(guid("e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae"), "TDVF"...)
		data = append(data, words(16+3*32, 1, 3,
			0x2000, size-0x2000, 0xffff2000, 0, size-0x2000, 0, 0, 1,
			0, 0x2000, 0xffff0000, 0, 0x2000, 0, 1, 0,
			0, 0, 0x809000, 0, 0x2000, 0, 2, 0)...)
		copy(image[size-0x400-16:], data)
		table = entry("e47a6535-984a-4798-865e-4685a7bf8ec2", words(0x400))
	}
	if table != nil {
		table = append(table, append(le.AppendUint16(nil, uint16(len(table)+18)), guid("96b582de-1fb2-45f7-baea-a366c55a082d")...)...)
		copy(image[size-32-len(table):], table)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), image, 0o600))
}

// mkkernel makes a file with the headers of a Linux kernel with an EFI stub:
// mkkernel FILE.
func mkkernel(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: mkkernel FILE")
	}
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
	le.PutUint32(b[0x22c:], 0x7fffffff)
	le.PutUint16(b[0x236:], 0x7f)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// mksigstruct makes an enclave's SIGSTRUCT: mksigstruct FILE.
func mksigstruct(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: mksigstruct FILE")
	}
	le := binary.LittleEndian
	raw := make([]byte, 1808)
	copy(raw, []byte{6, 0, 0, 0, 0xe1, 0, 0, 0, 0, 0, 1})
	le.PutUint32(raw[20:], 0x20260901)
	copy(raw[24:], []byte{1, 1, 0, 0, 0x60, 0, 0, 0, 0x60, 0, 0, 0, 1})
	raw[512] = 3
	le.PutUint64(raw[928:], 4)
	le.PutUint64(raw[944:], 2)
	le.PutUint16(raw[1024:], 0x0102)
	le.PutUint16(raw[1026:], 3)
	var p, q, phi *big.Int
	one, three := big.NewInt(1), big.NewInt(3)
	for phi == nil || new(big.Int).GCD(nil, nil, phi, three).Cmp(one) != 0 || new(big.Int).Mul(p, q).BitLen() != 3072 {
		var err error
		p, err = rand.Prime(rand.Reader, 1536)
		ts.Check(err)
		q, err = rand.Prime(rand.Reader, 1536)
		ts.Check(err)
		phi = new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	}
	k := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 3}, D: new(big.Int).ModInverse(three, phi), Primes: []*big.Int{p, q}}
	k.Precompute()
	put := func(off int, n *big.Int) {
		n.FillBytes(raw[off : off+384])
		slices.Reverse(raw[off : off+384])
	}
	put(128, k.N)
	h := sha256.Sum256(append(slices.Clone(raw[:128]), raw[900:1028]...))
	signature, err := rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, h[:])
	ts.Check(err)
	s := new(big.Int).SetBytes(signature)
	q1, rest := new(big.Int).DivMod(new(big.Int).Mul(s, s), k.N, new(big.Int))
	put(516, s)
	put(1040, q1)
	put(1424, new(big.Int).Div(rest.Mul(rest, s), k.N))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), raw, 0o600))
}

// What a prediction writes is what the trustee reads, in each format, signed and
// unsigned.
func TestReferencesReachTrustee(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	snp, err := reference.SNP(measure.Launch{Firmware: make([]byte, 8192), VCPUModel: "EPYC-v4"}, []int{1, 2, 4})
	if err != nil {
		t.Fatal(err)
	}
	tdx, err := reference.TDX(measure.TDXLaunch{Firmware: make([]byte, 8192), Kernel: []byte("kernel"), Memory: 1 << 30, VCPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	sgx := reference.Prediction{TEE: "sgx", References: []reference.Reference{
		{Name: "sgx_mr_signer", Values: []reference.Value{{Value: strings.Repeat("ab", 32)}}},
		{Name: "sgx_isv_svn", Values: []reference.Value{{Value: "0300"}}},
	}}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]reference.Prediction{"snp": snp, "tdx": tdx, "sgx": sgx} {
		want := map[string][]string{}
		for _, r := range p.References {
			for _, v := range r.Values {
				want[r.Name] = append(want[r.Name], v.Value)
			}
		}
		parse := func(o provenance.Options, message []byte) map[string][]string {
			t.Helper()
			o.Now = func() time.Time { return now }
			refs, err := provenance.Parse(t.Context(), o, message)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got := map[string][]string{}
			for _, r := range refs {
				if r.Scalar {
					t.Errorf("%s: %s is a scalar", name, r.Name)
				}
				for _, e := range r.Entries {
					var s string
					if err := json.Unmarshal(e.Value, &s); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					got[r.Name] = append(got[r.Name], s)
				}
			}
			return got
		}
		message, err := p.Message()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, parse(provenance.Options{AllowUnsigned: []string{provenance.Sample}}, message)); diff != "" {
			t.Errorf("%s: message: %s", name, diff)
		}
		corim, err := p.CoRIM(now.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		wrap := func(doc []byte) []byte {
			out, err := json.Marshal(map[string]string{"version": "0.1.0", "type": "corim", "payload": base64.StdEncoding.EncodeToString(doc)})
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		if diff := cmp.Diff(want, parse(provenance.Options{AllowUnsigned: []string{provenance.CoRIM}}, wrap(corim))); diff != "" {
			t.Errorf("%s: CoRIM: %s", name, diff)
		}
		for _, key := range []crypto.Signer{p256, p384, rsaKey, edKey} {
			signed, err := reference.SignCoRIM(rand.Reader, corim, key, "owner")
			if err != nil {
				t.Fatalf("%s: %T: %v", name, key, err)
			}
			o := provenance.Options{Signers: []provenance.Signer{{Name: "owner", Keys: []crypto.PublicKey{key.Public()}, Prefixes: []string{"*"}}}}
			if diff := cmp.Diff(want, parse(o, wrap(signed))); diff != "" {
				t.Errorf("%s: CoRIM signed with %T: %s", name, key, diff)
			}
			signed[len(signed)-1] ^= 1
			o.Now = func() time.Time { return now }
			if _, err := provenance.Parse(t.Context(), o, wrap(signed)); err == nil {
				t.Errorf("%s: CoRIM signed with %T: a changed signature is accepted", name, key)
			}
		}
		o := provenance.Options{AllowUnsigned: []string{provenance.CoRIM}, Now: func() time.Time { return now.Add(2 * time.Hour) }}
		if _, err := provenance.Parse(t.Context(), o, wrap(corim)); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("%s: expired CoRIM: got %v", name, err)
		}
	}
	if reference.ClassID != provenance.ClassID {
		t.Errorf("class: got %s, want %s", reference.ClassID, provenance.ClassID)
	}
}

// Every example in docs/measure.md runs.
func TestMeasureDocument(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/measure.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile(`(?m)^    coffer (measure .*)$`).FindAllSubmatch(doc, -1)
	if len(examples) < 6 {
		t.Errorf("got %d examples, want at least 6", len(examples))
	}
	script := "mkfirmware AMDSEV.fd snp\nmkfirmware OVMF.fd tdx\nmkkernel vmlinuz\nmkkey384 id.pem\nmkkey384 author.pem\nmkkey owner.pem\nmksigstruct enclave.sig\n"
	for _, e := range examples {
		if strings.Contains(string(e[1]), "/usr/share/OVMF/") {
			if _, err := os.Stat("/usr/share/OVMF/OVMF_CODE_4M.fd"); err != nil {
				continue // Debian's package ovmf is not installed
			}
		}
		script += "exits 0 coffer " + strings.ReplaceAll(string(e[1]), `"`, "'") + "\n"
	}
	script += "-- initrd.img --\ninitrd\n-- acpi/table-loader --\nloader\n-- acpi/rsdp --\nrsdp\n-- acpi/tables --\ntables\n"
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "examples.txt"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Dir: dir, RequireExplicitExec: true, Cmds: scriptCommands()})
}
