package collateral

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/coffer-project/coffer/tee/snp"
)

// Kind is a kind of collateral.
type Kind string

// The kinds.
const (
	VCEK       Kind = "amd-vcek"          // certificate of a chip at a patch level, DER
	AMDChain   Kind = "amd-chain"         // AMD's intermediate and root certificate, PEM
	AMDCRL     Kind = "amd-crl"           // AMD's revocation list, DER
	TCBInfo    Kind = "intel-tcb-info"    // Intel's judgement of a platform family, JSON
	QEIdentity Kind = "intel-qe-identity" // Intel's judgement of quoting enclaves, JSON
	PCKCRL     Kind = "intel-pck-crl"     // revocation list of platform certificates, DER
	RootCRL    Kind = "intel-root-crl"    // revocation list of Intel's root, DER
	RIM        Kind = "nvidia-rim"        // reference integrity manifest, XML or CBOR
	OCSP       Kind = "nvidia-ocsp"       // status of one certificate, DER
	HSKCEK     Kind = "hygon-hsk-cek"     // certificates of a Hygon chip, binary
)

// Vendor is "amd", "intel", "nvidia" or "hygon".
func (k Kind) Vendor() string {
	vendor, _, _ := strings.Cut(string(k), "-")
	return vendor
}

// Update selects the track of Intel's TCB recoveries: under "early" a platform
// counts as out of date as soon as the fix is announced, under "standard" when
// its owner had time to install it (Intel PCS API v4, parameter "update").
type Update string

// The tracks.
const (
	Standard Update = "standard"
	Early    Update = "early"
)

// Item names one piece of collateral. It is comparable.
type Item struct {
	Kind Kind
	// ID is what tells it from others of its kind, in one spelling only:
	//
	//	amd-vcek           Milan/<chip in hex>/bl03_tee00_snp08_ucode115[_fmc01]
	//	amd-chain, amd-crl Milan/vcek, Milan/vlek
	//	intel-tcb-info     tdx/00a06d080000/standard
	//	intel-qe-identity  tdx/standard
	//	intel-pck-crl      platform, processor
	//	intel-root-crl     sgx
	//	nvidia-rim         NV_GPU_DRIVER_GH100_535.104.05
	//	nvidia-ocsp        <SHA-256 of the issuer's certificate>/<serial number in hex>
	//	hygon-hsk-cek      KPA64911240507
	ID string
}

// String is "kind:id", what [ParseItem] reads.
func (i Item) String() string { return string(i.Kind) + ":" + i.ID }

// MarshalText implements encoding.TextMarshaler.
func (i Item) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *Item) UnmarshalText(text []byte) (err error) {
	*i, err = ParseItem(string(text))
	return err
}

// idPattern is what an ID of a kind looks like. Nothing in it can leave a
// directory or need escaping in a file name.
func idPattern(k Kind) string {
	const amd, intel, track = `(Milan|Genoa|Turin)`, `(sgx|tdx)`, `(standard|early)`
	switch k {
	case VCEK:
		return `((Milan|Genoa)/[0-9a-f]{128}/bl\d{2,3}_tee\d{2,3}_snp\d{2,3}_ucode\d{2,3}|Turin/[0-9a-f]{16}/bl\d{2,3}_tee\d{2,3}_snp\d{2,3}_ucode\d{2,3}_fmc\d{2,3})`
	case AMDChain, AMDCRL:
		return amd + `/(vcek|vlek)`
	case TCBInfo:
		return intel + `/[0-9a-f]{12}/` + track
	case QEIdentity:
		return intel + `/` + track
	case PCKCRL:
		return `(platform|processor)`
	case RootCRL:
		return `sgx`
	case RIM:
		return `NV_[A-Za-z0-9_.+-]{1,120}`
	case OCSP:
		return `[0-9a-f]{64}/[0-9a-f]{1,64}`
	case HSKCEK:
		return `[A-Za-z0-9]{4,64}`
	}
	return ""
}

// patterns are compiled once: a verifier names several items for each evidence.
var patterns = sync.OnceValues(func() (map[Kind]*regexp.Regexp, error) {
	out := map[Kind]*regexp.Regexp{}
	for _, k := range []Kind{VCEK, AMDChain, AMDCRL, TCBInfo, QEIdentity, PCKCRL, RootCRL, RIM, OCSP, HSKCEK} {
		compiled, err := regexp.Compile(`\A` + idPattern(k) + `\z`)
		if err != nil {
			return nil, err
		}
		out[k] = compiled
	}
	return out, nil
})

// ParseItem reads "kind:id".
func ParseItem(s string) (Item, error) {
	kind, id, _ := strings.Cut(s, ":")
	return newItem(Kind(kind), id)
}

func newItem(k Kind, id string) (Item, error) {
	all, err := patterns()
	if err != nil {
		return Item{}, fmt.Errorf("collateral: %s: %w", k, err)
	}
	switch pattern := all[k]; {
	case pattern == nil:
		return Item{}, fmt.Errorf("collateral: unknown kind %.32q", string(k))
	case !pattern.MatchString(id):
		return Item{}, fmt.Errorf("collateral: %s: expected an identifier such as %s, got %.80q", k, idPattern(k), id)
	}
	i := Item{k, id}
	if k == VCEK { // numbers have one spelling
		if g, chip, tcb, err := i.vcek(); err != nil {
			return Item{}, err
		} else if again, err := VCEKItem(g, chip, tcb); err != nil || again != i {
			return Item{}, fmt.Errorf("collateral: %s: expected patch levels of two digits up to 255, got %.240q", k, id)
		}
	}
	return i, nil
}

// VCEKItem is the certificate of a chip at a patch level. chipID is the field of
// the report, 64 bytes; Turin's is 8 bytes, or 8 bytes padded with zeros.
func VCEKItem(g snp.Generation, chipID []byte, tcb snp.TCB) (Item, error) {
	turin := g == snp.Turin
	switch {
	case g != snp.Milan && g != snp.Genoa && !turin:
		return Item{}, fmt.Errorf("collateral: generation: expected Milan, Genoa or Turin, got %.32q", string(g))
	case len(chipID) != 64 && (!turin || len(chipID) != 8):
		return Item{}, fmt.Errorf("collateral: chip identifier: expected 64 bytes (Turin: 8), got %d", len(chipID))
	case zero(chipID):
		return Item{}, fmt.Errorf("collateral: chip identifier: it is zero: the host masks it, and so nobody can look the chip up")
	case turin && !zero(chipID[8:]):
		return Item{}, fmt.Errorf("collateral: chip identifier: expected zeros behind Turin's 8 bytes")
	case turin != (tcb.FMC != nil):
		return Item{}, fmt.Errorf("collateral: patch level fmc: Turin has it, other generations have not; got %s of %s", tcb, g)
	}
	levels := fmt.Sprintf("bl%02d_tee%02d_snp%02d_ucode%02d", tcb.Bootloader, tcb.TEE, tcb.SNP, tcb.Microcode)
	if turin {
		chipID = chipID[:8]
		levels += fmt.Sprintf("_fmc%02d", *tcb.FMC)
	}
	return Item{VCEK, string(g) + "/" + hex.EncodeToString(chipID) + "/" + levels}, nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// vcek takes the item apart.
func (i Item) vcek() (g snp.Generation, chipID []byte, tcb snp.TCB, err error) {
	parts := strings.Split(i.ID, "/")
	if i.Kind != VCEK || len(parts) != 3 {
		return "", nil, tcb, fmt.Errorf("collateral: %s is no VCEK", i)
	}
	if chipID, err = hex.DecodeString(parts[1]); err != nil {
		return "", nil, tcb, err
	}
	g = snp.Generation(parts[0])
	levels, format := []any{&tcb.Bootloader, &tcb.TEE, &tcb.SNP, &tcb.Microcode}, "bl%d_tee%d_snp%d_ucode%d"
	if g == snp.Turin {
		tcb.FMC = new(uint8)
		levels, format = append(levels, tcb.FMC), format+"_fmc%d"
	}
	if _, err = fmt.Sscanf(parts[2], format, levels...); err != nil {
		return "", nil, tcb, fmt.Errorf("collateral: %s: patch levels: %w", i, err)
	}
	return g, chipID, tcb, nil
}

// AMDItem is AMD's certificate chain ([AMDChain]) or revocation list ([AMDCRL])
// of a generation and a kind of key.
func AMDItem(k Kind, g snp.Generation, s snp.Signer) (Item, error) {
	return newItem(k, string(g)+"/"+strings.ToLower(s.String()))
}

// amd takes the item apart.
func (i Item) amd() (snp.Generation, snp.Signer) {
	g, s, _ := strings.Cut(i.ID, "/")
	if s == "vlek" {
		return snp.Generation(g), snp.SignerVLEK
	}
	return snp.Generation(g), snp.SignerVCEK
}

// TCBInfoItem is Intel's judgement of a platform family; tee is "sgx" or "tdx".
func TCBInfoItem(tee string, fmspc [6]byte, u Update) (Item, error) {
	return newItem(TCBInfo, tee+"/"+hex.EncodeToString(fmspc[:])+"/"+string(u))
}

// QEIdentityItem is Intel's judgement of quoting enclaves; tee is "sgx" or "tdx".
func QEIdentityItem(tee string, u Update) (Item, error) {
	return newItem(QEIdentity, tee+"/"+string(u))
}

// PCKCRLItem is a revocation list of platform certificates; ca is "platform" or
// "processor".
func PCKCRLItem(ca string) (Item, error) { return newItem(PCKCRL, ca) }

// RootCRLItem is the revocation list of Intel's root.
func RootCRLItem() Item { return Item{RootCRL, "sgx"} }

// RIMItem is a reference integrity manifest of NVIDIA's.
func RIMItem(id string) (Item, error) { return newItem(RIM, id) }

// HSKCEKItem are the certificates of a Hygon chip.
func HSKCEKItem(serial string) (Item, error) { return newItem(HSKCEK, serial) }

// OCSPItem is the status of a certificate.
func OCSPItem(cert, issuer *x509.Certificate) (Item, error) {
	sum := sha256.Sum256(issuer.Raw)
	return newItem(OCSP, hex.EncodeToString(sum[:])+"/"+cert.SerialNumber.Text(16))
}

// otherTrack is the item on the other track of Intel's recoveries.
func (i Item) otherTrack() (Item, bool) {
	for _, track := range [][2]string{{"/standard", "/early"}, {"/early", "/standard"}} {
		if head, ok := strings.CutSuffix(i.ID, track[0]); ok && (i.Kind == TCBInfo || i.Kind == QEIdentity) {
			return Item{i.Kind, head + track[1]}, true
		}
	}
	return Item{}, false
}

// words is the item for people.
func (i Item) words() string {
	parts := strings.Split(i.ID, "/")
	switch i.Kind {
	case VCEK:
		return fmt.Sprintf("AMD's certificate (VCEK) of %s chip %.16s… at patch level %s", parts[0], parts[1], parts[2])
	case AMDChain:
		return fmt.Sprintf("AMD's %s certificate chain of %s", strings.ToUpper(parts[1]), parts[0])
	case AMDCRL:
		return fmt.Sprintf("AMD's %s revocation list of %s", strings.ToUpper(parts[1]), parts[0])
	case TCBInfo:
		return fmt.Sprintf("TCB info of %s platform family %s (%s)", strings.ToUpper(parts[0]), parts[1], parts[2])
	case QEIdentity:
		return fmt.Sprintf("identity of Intel's quoting enclave of %s (%s)", strings.ToUpper(parts[0]), parts[1])
	case PCKCRL:
		return "revocation list of Intel's PCK " + i.ID + " CA"
	case RootCRL:
		return "revocation list of Intel's SGX root CA"
	case RIM:
		return "NVIDIA's reference manifest (RIM) " + i.ID
	case OCSP:
		return fmt.Sprintf("status (OCSP) of NVIDIA's certificate with serial number %s", parts[1])
	case HSKCEK:
		return "Hygon's certificates (HSK, CEK) of chip " + i.ID
	}
	return i.String()
}
