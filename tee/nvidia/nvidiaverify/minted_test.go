package nvidiaverify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/coffer-project/coffer/tee/nvidia"
)

// What follows makes devices, evidence and collateral under a root of its own, for
// tests of what no published evidence shows.

// Now lies in the validity of everything that is made here.
func Now() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// Authority is a root.
type Authority struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// NewKey returns a key on P-384.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Template is that of an authority's certificate.
func Template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(sum(name)[:12]), Subject: pkix.Name{CommonName: name, Organization: []string{"test"}},
		NotBefore: Now().AddDate(-2, 0, 0), NotAfter: Now().AddDate(20, 0, 0), BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
}

func sum(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

// Issue signs a certificate.
func Issue(t testing.TB, template, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// NewAuthority returns a root.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	k := NewKey(t)
	tmpl := Template("test root " + hex.EncodeToString(k.X.Bytes()[:4]))
	return &Authority{Issue(t, tmpl, tmpl, &k.PublicKey, k), k}
}

// PEM is certificates one after the other.
func PEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// Device is a device with its chain.
type Device struct {
	Arch nvidia.Arch
	Chip string
	// Templates, Certs and Keys are those of the chain, the device's first.
	Templates []*x509.Certificate
	Certs     []*x509.Certificate
	Keys      []*ecdsa.PrivateKey
	// FWID is in the certificate; Fields are the opaque data of reports.
	FWID   []byte
	PDI    string
	Fields []nvidia.Field
	// Values are the measurements, from index 1.
	Values [][]byte
}

// Flags are the TCB flags of a Blackwell.
type Flags = asn1.BitString

// NewDevice returns a device with a chip's name, for example GH100, which is
// told from others by its serial number.
func (a *Authority) NewDevice(t testing.TB, chip, serial string) *Device {
	t.Helper()
	d := &Device{Chip: chip, PDI: hex.EncodeToString(sum(chip + serial)[:8]), FWID: digest("fwid " + chip)}
	var err error
	if d.Arch, err = (nvidia.Identity{Chip: chip}).Arch(); err != nil {
		t.Fatal(err)
	}
	for range 64 {
		d.Values = append(d.Values, digest("measurement of "+chip+" "+string(rune('0'+len(d.Values)))))
	}
	d.Fields = fields(d)
	for range 4 {
		d.Keys = append(d.Keys, NewKey(t))
	}
	d.Keys = append(d.Keys, a.Key)
	device := Template(chip + " A01 BROM")
	device.Subject.SerialNumber = "41" + strings.ToUpper(d.PDI)
	device.SerialNumber = new(big.Int).SetBytes(sum(serial)[:9])
	device.SubjectKeyId = sum("device " + serial)[:20]
	leaf := Template(chip + " A01 FMC LF")
	leaf.IsCA, leaf.KeyUsage, leaf.SerialNumber = false, x509.KeyUsageDigitalSignature, new(big.Int).SetBytes(sum("leaf " + serial)[:9])
	leaf.ExtraExtensions = []pkix.Extension{Name(t, "NVIDIA:"+chip+":"+strings.ToUpper(hex.EncodeToString(sum(serial)[:8]))), d.DICE(t, Flags{Bytes: []byte{0x80, 0, 0, 1}, BitLength: 32})}
	d.Templates = []*x509.Certificate{leaf, device, Template("test " + chip + " Provisioner"), Template("test " + chip + " Identity"), a.Cert}
	d.Certify(t)
	return d
}

// Certify makes the certificates anew from the templates. The root stays.
func (d *Device) Certify(t testing.TB) {
	t.Helper()
	d.Certs = make([]*x509.Certificate, 5)
	d.Certs[4] = d.Templates[4]
	for i := 3; i >= 0; i-- {
		d.Certs[i] = Issue(t, d.Templates[i], d.Certs[i+1], &d.Keys[i].PublicKey, d.Keys[i+1])
	}
}

func digest(s string) []byte {
	h := sha512.Sum384([]byte(s))
	return h[:]
}

// Name is a subject alternative name with one otherName of DMTF's form.
func Name(t testing.TB, text string) pkix.Extension {
	t.Helper()
	type otherName struct {
		OID   asn1.ObjectIdentifier
		Value string `asn1:"utf8,explicit,tag:0"`
	}
	inner, err := asn1.MarshalWithParams(otherName{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 412, 274, 1}, text}, "tag:0")
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: marshal(t, []asn1.RawValue{{FullBytes: inner}})}
}

type fwid struct {
	OID    asn1.ObjectIdentifier
	Digest []byte
}

// DICE is the extension with the firmware identifier, in the chip's form.
func (d *Device) DICE(t testing.TB, flags Flags) pkix.Extension {
	t.Helper()
	id := fwid{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, d.FWID}
	if d.Arch == nvidia.Blackwell {
		type tcbInfo struct {
			Vendor string `asn1:"utf8,tag:0"`
			FWIDs  []fwid `asn1:"tag:6"`
			Flags  Flags  `asn1:"tag:7"`
		}
		return pkix.Extension{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1, 1}, Value: marshal(t, tcbInfo{"NVIDIA", []fwid{id}, flags})}
	}
	key, err := x509.MarshalPKIXPublicKey(&d.Keys[1].PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	type composite struct {
		Version int
		Key     asn1.RawValue
		FWID    fwid
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}, Value: marshal(t, composite{1, asn1.RawValue{FullBytes: key}, id})}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func fields(d *Device) []nvidia.Field {
	if d.Arch == nvidia.LS10 {
		pdi, _ := hex.DecodeString(d.PDI)
		return []nvidia.Field{{Type: nvidia.FieldVBIOSVersion, Data: []byte("96.10.55.00.0A")}, {Type: nvidia.FieldPDI, Data: pdi}}
	}
	out := []nvidia.Field{
		{Type: nvidia.FieldVBIOSVersion, Data: []byte{0, 0x9F, 0, 0x96, 0x0A, 0, 0, 0}}, {Type: nvidia.FieldChipSKU, Data: []byte("882\x00\x00")},
		{Type: nvidia.FieldProject, Data: []byte("g520\x00")}, {Type: nvidia.FieldProjectSKU, Data: []byte("0200\x00")},
		{Type: nvidia.FieldDriverVersion, Data: []byte("550.90.07\x00")}, {Type: nvidia.FieldNVDEC0Status, Data: []byte{0xAA}}, {Type: nvidia.FieldFWID, Data: d.FWID},
	}
	if d.Arch == nvidia.Blackwell {
		out = append(out, nvidia.Field{Type: nvidia.FieldChipInfo, Data: []byte(d.Chip + "\x00\x00")})
	}
	return out
}

// Set replaces or adds an opaque field.
func (d *Device) Set(t nvidia.FieldType, data []byte) {
	for i := range d.Fields {
		if d.Fields[i].Type == t {
			d.Fields[i].Data = data
			return
		}
	}
	d.Fields = append(d.Fields, nvidia.Field{Type: t, Data: data})
}

// Report is a signed report over a nonce (DMTF DSP0274 1.1, GET_MEASUREMENTS).
func (d *Device) Report(t testing.TB, nonce []byte) []byte {
	t.Helper()
	var record, opaque []byte
	for i, v := range d.Values {
		record = append(record, byte(i+1), 1)
		record = binary.LittleEndian.AppendUint16(record, uint16(len(v)+3))
		record = append(record, 1)
		record = binary.LittleEndian.AppendUint16(record, uint16(len(v)))
		record = append(record, v...)
	}
	for _, f := range d.Fields {
		opaque = binary.LittleEndian.AppendUint16(opaque, uint16(f.Type))
		opaque = binary.LittleEndian.AppendUint16(opaque, uint16(len(f.Data)))
		opaque = append(opaque, f.Data...)
	}
	out := append([]byte{0x11, 0xE0, 1, 0xFF}, nonce...)
	out = append(out, 0, 0x11, 0x60, 0, 0, byte(len(d.Values)), byte(len(record)), byte(len(record)>>8), byte(len(record)>>16))
	out = append(out, record...)
	out = append(out, sum("the device's nonce")...)
	out = binary.LittleEndian.AppendUint16(out, uint16(len(opaque)))
	out = append(out, opaque...)
	return append(out, Sign(t, d.Keys[0], out)...)
}

// Sign is r and s side by side, of 48 bytes each.
func Sign(t testing.TB, k *ecdsa.PrivateKey, message []byte) []byte {
	t.Helper()
	h := sha512.Sum384(message)
	r, s, err := ecdsa.Sign(rand.Reader, k, h[:])
	if err != nil {
		t.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 48)), s.FillBytes(make([]byte, 48))...)
}

// Evidence is that of a device over a nonce.
func (d *Device) Evidence(t testing.TB, nonce []byte) nvidia.Device {
	t.Helper()
	return nvidia.Device{Arch: d.Arch, Report: d.Report(t, nonce), Chain: PEM(d.Certs...)}
}

// OCSP is a response by a responder; responder may be the issuer.
func OCSP(t testing.TB, issuer, responder *x509.Certificate, template ocsp.Response, key crypto.Signer) []byte {
	t.Helper()
	if template.Certificate == nil && !responder.Equal(issuer) {
		template.Certificate = responder
	}
	der, err := ocsp.CreateResponse(issuer, responder, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
