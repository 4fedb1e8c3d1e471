package csvverify

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"math/big"
	"slices"
	"testing"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/csv"
)

// The tests write certificates and reports by the offsets of csv-rs, apart from
// the code that reads them.

type key struct {
	private *sm2.PrivateKey
	uid     string
}

func newKey(t testing.TB, uid string) key {
	t.Helper()
	k, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key{k, uid}
}

func reversed(n *big.Int) []byte {
	b := n.FillBytes(make([]byte, 32))
	slices.Reverse(b)
	return b
}

// putPoint writes curve, x and y in 148 bytes.
func (k key) putPoint(b []byte) {
	binary.LittleEndian.PutUint32(b, 3)
	copy(b[4:], reversed(k.private.X))
	copy(b[76:], reversed(k.private.Y))
}

func (k key) putUID(b []byte) {
	binary.LittleEndian.PutUint16(b, uint16(len(k.uid)))
	copy(b[2:], k.uid)
}

// putSignature writes r and s in 144 bytes.
func (k key) putSignature(t testing.TB, out, data []byte) {
	t.Helper()
	der, err := k.private.SignWithSM2(rand.Reader, []byte(k.uid), data)
	if err != nil {
		t.Fatal(err)
	}
	var s struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &s); err != nil {
		t.Fatal(err)
	}
	copy(out, reversed(s.R))
	copy(out[72:], reversed(s.S))
}

// machine is a chip of nobody's, with all the keys above it.
type machine struct {
	hrkKey, hskKey, cekKey, pekKey key
	hrk, hsk, cek, pek             []byte
	serial                         []byte
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{hrkKey: newKey(t, "TEST-HRK"), hskKey: newKey(t, "TEST-HSK"), cekKey: newKey(t, "TEST-CEK"), pekKey: newKey(t, "TEST-PEK"), serial: tee.Fit([]byte("TEST0001"), 64)}
	m.hrk = caCertificate(t, m.hrkKey, 0, "hrk-hrk-hrk-hrk-", "hrk-hrk-hrk-hrk-", m.hrkKey)
	m.hsk = caCertificate(t, m.hskKey, 0x13, "hsk-hsk-hsk-hsk-", "hrk-hrk-hrk-hrk-", m.hrkKey)
	m.cek = certificate(t, m.cekKey, 0x1004, "hsk-hsk-hsk-hsk-", m.hskKey, 0x13)
	m.pek = certificate(t, m.pekKey, 0x1002, "", m.cekKey, 0x1004)
	return m
}

func caCertificate(t testing.TB, k key, usage uint32, kid, sid string, by key) []byte {
	t.Helper()
	b := make([]byte, 832)
	b[0] = 1
	copy(b[4:20], kid)
	copy(b[20:36], sid)
	binary.LittleEndian.PutUint32(b[36:], usage)
	k.putPoint(b[64:])
	k.putUID(b[64+148:])
	by.putSignature(t, b[576:], b[:576])
	return b
}

func certificate(t testing.TB, k key, usage uint32, sid string, by key, byUsage uint32) []byte {
	t.Helper()
	b := make([]byte, 2084)
	b[0] = 1
	le := binary.LittleEndian
	le.PutUint32(b[8:], usage)
	le.PutUint32(b[12:], 4)
	k.putPoint(b[16:])
	k.putUID(b[164:])
	copy(b[420:436], sid)
	le.PutUint32(b[1044:], byUsage)
	le.PutUint32(b[1048:], 4)
	by.putSignature(t, b[1052:], b[:1044])
	le.PutUint32(b[1564:], 0x1000)
	return b
}

// guest is what a report is about to say.
type guest struct {
	version    int
	reportData []byte
	policy     uint32
	usage      uint32
	algorithm  uint32
	anonce     []byte
	rtmr       [5][]byte
	hostData   []byte
	// raw leaves the signer masked and padded with noise.
	raw bool
	// after is called with the page before it becomes evidence.
	after func(page []byte)
	// evidence is called with the evidence before it becomes JSON.
	evidence func(e *csv.Evidence)
	withPair bool
}

func newGuest(version int) *guest {
	g := &guest{version: version, reportData: filled(64, 'A'), policy: 0x47, usage: 0x1002, algorithm: 4, anonce: []byte{1, 2, 3, 4}, hostData: filled(64, 'H'), withPair: true}
	for i := range g.rtmr {
		g.rtmr[i] = make([]byte, 32)
	}
	return g
}

func filled(n int, b byte) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = b
	}
	return out
}

func mask(b, anonce []byte) {
	for i := range b {
		b[i] ^= anonce[i%4]
	}
}

// report makes the evidence of a guest on the machine.
func (m *machine) report(t testing.TB, g *guest) json.RawMessage {
	t.Helper()
	le := binary.LittleEndian
	page := make([]byte, 4096)
	copy(page[32:], "vm-id")
	copy(page[48:], "vm-version")
	copy(page[64:128], g.reportData)
	copy(page[128:144], "nonce-of-guest-x")
	copy(page[144:176], filled(32, 0x5A))
	le.PutUint32(page[176:], g.policy)
	le.PutUint32(page[180:], g.usage)
	le.PutUint32(page[184:], g.algorithm)
	e := &csv.Evidence{Page: page, PEK: m.pek, Serial: m.serial}
	end, anonce := 0x490, make([]byte, 4)
	mnonce := slices.Clone(page[128:144])
	if g.version == 1 {
		end, anonce = 0x150, g.anonce
		mask(page[:188], anonce)
		copy(page[188:], anonce)
		m.pekKey.putSignature(t, page[192:], page[:180])
	} else {
		e.Magic, e.Flags = [16]byte([]byte("ATTESTATION_EXT\x00")), 1
		le.PutUint32(page[188:], 2222)
		le.PutUint16(page[192:], 1)
		for i, r := range g.rtmr {
			copy(page[208+32*i:], r)
		}
		if g.version == 3 {
			e.Flags = 3
			copy(page[960:1024], g.hostData)
		}
		m.pekKey.putSignature(t, page[1024:], page[:1024])
	}
	signer := page[end:][:2212]
	copy(signer, m.pek)
	copy(signer[2084:], m.serial)
	masked := slices.Clone(signer[:2180])
	copy(masked[2148:], filled(32, 0xE7))
	mask(masked[:2148], anonce)
	h := hmac.New(sm3.New, mnonce)
	h.Write(masked)
	copy(signer[2180:], h.Sum(nil))
	if g.raw {
		copy(signer, masked)
	}
	if g.after != nil {
		g.after(page)
	}
	if g.withPair {
		e.HSK, e.CEK = m.hsk, m.cek
	}
	if g.evidence != nil {
		g.evidence(e)
	}
	data, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (m *machine) root() DevelopmentRoot { return DevelopmentRoot{Name: "test", HRK: m.hrk} }
