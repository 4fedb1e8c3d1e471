package config

import (
	"fmt"
	"slices"
	"time"
)

// TEE configures the verifiers. A vendor with a root of its own is enabled by
// default: nothing is affirmed without reference values all the same.
type TEE struct {
	SNP      SNP    `toml:"snp"`
	TDX      Intel  `toml:"tdx"`
	SGX      Intel  `toml:"sgx"`
	AzureSNP Azure  `toml:"az-snp-vtpm"`
	AzureTDX Azure  `toml:"az-tdx-vtpm"`
	TPM      TPM    `toml:"tpm"`
	CCA      CCA    `toml:"cca"`
	SE       SE     `toml:"se"`
	CSV      CSV    `toml:"csv"`
	NVIDIA   NVIDIA `toml:"nvidia"`
	Sample   Sample `toml:"sample"`
}

// SNP configures the SEV-SNP verifier.
type SNP struct {
	Enabled bool `toml:"enabled"`
	// DevelopmentRoots are PEM files (ASK, then ARK) of software TEEs. Their
	// evidence is accepted as simulated.
	DevelopmentRoots []string `toml:"development_roots"`
	AllowDebug       bool     `toml:"allow_debug"`
	AllowMigration   bool     `toml:"allow_migration"`
	ForbidSMT        bool     `toml:"forbid_smt"`
	// CheckRevocation demands AMD's revocation list.
	CheckRevocation bool `toml:"check_revocation"`
	// MinimumTCB is by generation: Milan, Genoa, Turin.
	MinimumTCB map[string]TCB `toml:"minimum_tcb"`
	// IDKeyDigests and AuthorKeyDigests are SHA-384 digests in hex of the keys
	// that may have signed the ID block.
	IDKeyDigests     []string `toml:"id_key_digests"`
	AuthorKeyDigests []string `toml:"author_key_digests"`
	// MinimumGuestSVN is the least security version in the ID block.
	MinimumGuestSVN uint32 `toml:"minimum_guest_svn"`
}

// TCB is a set of least patch levels. It holds for the reported, the committed
// and the launch TCB, unless these have one of their own.
type TCB struct {
	Levels
	Reported  *Levels `toml:"reported"`
	Committed *Levels `toml:"committed"`
	Launch    *Levels `toml:"launch"`
}

// Levels are least patch levels by component.
type Levels struct {
	FMC        uint8 `toml:"fmc"`
	Bootloader uint8 `toml:"bootloader"`
	TEE        uint8 `toml:"tee"`
	SNP        uint8 `toml:"snp"`
	Microcode  uint8 `toml:"microcode"`
}

// Intel configures the verifiers of TDX and SGX.
type Intel struct {
	Enabled bool `toml:"enabled"`
	// DevelopmentRoots are files of software TEEs: the root and its collateral.
	DevelopmentRoots []string `toml:"development_roots"`
	AllowDebug       bool     `toml:"allow_debug"`
	// AllowStaleCollateral judges by Intel's documents past their date where no
	// fresher can be had. Documents that cannot be had at all are another matter:
	// without them nothing is judged.
	AllowStaleCollateral bool `toml:"allow_stale_collateral"`
}

// Azure configures the verifiers of Azure's confidential VMs.
type Azure struct {
	Enabled bool `toml:"enabled"`
	// RequireVersion2 refuses envelopes that do not prove that the hardware
	// report is fresh.
	RequireVersion2 bool `toml:"require_version_2"`
}

// TPM configures the verifier of TPM quotes.
type TPM struct {
	Enabled bool `toml:"enabled"`
	// TrustedAKs are PEM files of attestation keys, or of certificates of
	// authorities that certify nothing else.
	TrustedAKs []string `toml:"trusted_aks"`
}

// CCA configures the Arm CCA verifier.
type CCA struct {
	Enabled bool `toml:"enabled"`
	// TrustAnchors are JSON files with platforms' attestation keys,
	// DevelopmentAnchors such with keys of emulated platforms.
	TrustAnchors       []string `toml:"trust_anchors"`
	DevelopmentAnchors []string `toml:"development_anchors"`
	AllowDebug         bool     `toml:"allow_debug"`
}

// SE configures the IBM Secure Execution verifier. All files are PEM or DER.
type SE struct {
	Enabled bool `toml:"enabled"`
	// HostKeys are host-key documents of the machines, Certificates IBM's signing
	// key and the intermediates over it, Roots what those end in, CRLs the
	// revocation lists of each issuer.
	HostKeys     []string `toml:"host_keys"`
	Certificates []string `toml:"certificates"`
	Roots        []string `toml:"roots"`
	CRLs         []string `toml:"crls"`
	// DevelopmentHostKeys are those of emulated machines.
	DevelopmentHostKeys []string `toml:"development_host_keys"`
	// Image is the Secure Execution image that guests boot.
	Image string `toml:"image"`
}

// CSV configures the Hygon CSV verifier.
type CSV struct {
	Enabled    bool `toml:"enabled"`
	AllowDebug bool `toml:"allow_debug"`
}

// NVIDIA configures the verifier of GPUs and switches.
type NVIDIA struct {
	Enabled          bool     `toml:"enabled"`
	AllowDebug       bool     `toml:"allow_debug"`
	CheckRevocation  bool     `toml:"check_revocation"`
	CompareRIM       bool     `toml:"compare_rim"`
	DevelopmentRoots []string `toml:"development_roots"`
}

// Sample configures the sample TEE, which proves nothing.
type Sample struct {
	Enabled bool `toml:"enabled"`
}

// Collateral configures where verifiers get what evidence does not bring.
type Collateral struct {
	// Dir is where it is kept; empty: "collateral" in the state directory.
	Dir string `toml:"dir"`
	// Stores are directories that are only read.
	Stores []string `toml:"stores"`
	// Offline fetches nothing.
	Offline bool `toml:"offline"`
	// Update is Intel's track: "standard" or "early".
	Update string `toml:"tcb_update"`
	// MaxAge is after how long dated documents are fetched anew.
	MaxAge  Duration `toml:"max_age"`
	Timeout Duration `toml:"timeout"`
	// The services; empty: the vendors' own.
	KDS   string `toml:"amd_kds"`
	PCS   string `toml:"intel_pcs"`
	RIM   string `toml:"nvidia_rim"`
	OCSP  string `toml:"nvidia_ocsp"`
	Hygon string `toml:"hygon"`
}

func defaultTEE() TEE {
	return TEE{
		SNP: SNP{Enabled: true, CheckRevocation: true},
		TDX: Intel{Enabled: true}, SGX: Intel{Enabled: true},
		AzureSNP: Azure{Enabled: true}, AzureTDX: Azure{Enabled: true},
		CSV: CSV{Enabled: true}, NVIDIA: NVIDIA{Enabled: true, CheckRevocation: true, CompareRIM: true},
	}
}

func (c *Config) teeProblems(p *problems) {
	t := c.TEE
	if !slices.Contains([]bool{t.SNP.Enabled, t.TDX.Enabled, t.SGX.Enabled, t.AzureSNP.Enabled, t.AzureTDX.Enabled, t.TPM.Enabled, t.CCA.Enabled, t.SE.Enabled, t.CSV.Enabled, t.NVIDIA.Enabled, t.Sample.Enabled}, true) {
		p.add("tee", "at least one enabled environment", "none")
	}
	for g := range t.SNP.MinimumTCB {
		p.oneOf("tee.snp.minimum_tcb", g, "Milan", "Genoa", "Turin")
	}
	for _, list := range []struct {
		key     string
		digests []string
	}{{"tee.snp.id_key_digests", t.SNP.IDKeyDigests}, {"tee.snp.author_key_digests", t.SNP.AuthorKeyDigests}} {
		for _, d := range list.digests {
			if !hexDigest(d, sha384Digits) {
				p.add(list.key, "SHA-384 digests of 96 hexadecimal digits", d)
			}
		}
	}
	if t.CCA.Enabled && len(t.CCA.TrustAnchors)+len(t.CCA.DevelopmentAnchors) == 0 {
		p.add("tee.cca.trust_anchors", "files with the keys of platforms: Arm has no root that all chain to", "none")
	}
	if t.SE.Enabled {
		if len(t.SE.HostKeys)+len(t.SE.DevelopmentHostKeys) == 0 {
			p.add("tee.se.host_keys", "the host-key documents of the machines", "none")
		}
		if len(t.SE.HostKeys) > 0 && len(t.SE.Roots) == 0 {
			p.add("tee.se.roots", "the root certificates that host keys end in", "none")
		}
		p.notEmpty("tee.se.image", t.SE.Image)
	}
	p.oneOf("collateral.tcb_update", c.Collateral.Update, "standard", "early")
	p.positive("collateral.max_age", c.Collateral.MaxAge.D(), 30*24*time.Hour)
	p.positive("collateral.timeout", c.Collateral.Timeout.D(), 10*time.Minute)
	for _, u := range []struct{ key, url string }{
		{"collateral.amd_kds", c.Collateral.KDS}, {"collateral.intel_pcs", c.Collateral.PCS}, {"collateral.nvidia_rim", c.Collateral.RIM},
		{"collateral.nvidia_ocsp", c.Collateral.OCSP}, {"collateral.hygon", c.Collateral.Hygon},
	} {
		if u.url != "" {
			p.url(u.key, u.url)
		}
	}
}

const sha384Digits = 96

func hexDigest(s string, digits int) bool {
	if len(s) != digits {
		return false
	}
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') && (r < 'A' || r > 'F') {
			return false
		}
	}
	return true
}

// teeWarnings says what the verifiers' configuration relaxes.
func (c *Config) teeWarnings() []string {
	var w []string
	t := c.TEE
	for _, r := range []struct {
		key, vendor string
		n           int
	}{
		{"tee.snp.development_roots", "AMD", len(t.SNP.DevelopmentRoots)},
		{"tee.tdx.development_roots", "Intel", len(t.TDX.DevelopmentRoots)},
		{"tee.sgx.development_roots", "Intel", len(t.SGX.DevelopmentRoots)},
		{"tee.nvidia.development_roots", "NVIDIA", len(t.NVIDIA.DevelopmentRoots)},
	} {
		if r.n > 0 {
			w = append(w, fmt.Sprintf("%s: evidence under %d root(s) that are not %s's is accepted as simulated", r.key, r.n, r.vendor))
		}
	}
	if n := len(t.CCA.DevelopmentAnchors); n > 0 {
		w = append(w, fmt.Sprintf("tee.cca.development_anchors: evidence by keys of %d file(s) of emulated platforms is accepted as simulated", n))
	}
	if n := len(t.SE.DevelopmentHostKeys); n > 0 {
		w = append(w, fmt.Sprintf("tee.se.development_host_keys: evidence of %d machine(s) that nobody vouches for is accepted as simulated", n))
	}
	for _, d := range []struct {
		key, what string
		on        bool
	}{
		{"tee.snp.allow_debug", "guests whose memory the host can read are accepted as genuine", t.SNP.AllowDebug},
		{"tee.snp.allow_migration", "guests that an agent can move to another machine are accepted as genuine", t.SNP.AllowMigration},
		{"tee.tdx.allow_debug", "guests whose memory the host can read are accepted as genuine", t.TDX.AllowDebug},
		{"tee.sgx.allow_debug", "enclaves whose memory the host can read are accepted as genuine", t.SGX.AllowDebug},
		{"tee.cca.allow_debug", "platforms that are open for debugging are accepted as genuine", t.CCA.AllowDebug},
		{"tee.csv.allow_debug", "guests whose memory the host can read are accepted as genuine", t.CSV.AllowDebug},
		{"tee.nvidia.allow_debug", "devices that can be debugged are accepted as genuine", t.NVIDIA.AllowDebug},
		{"tee.tdx.allow_stale_collateral", "platforms are judged by what Intel said in the past where nothing newer can be had", t.TDX.AllowStaleCollateral},
		{"tee.sgx.allow_stale_collateral", "platforms are judged by what Intel said in the past where nothing newer can be had", t.SGX.AllowStaleCollateral},
		{"tee.tpm.trusted_aks is empty", "a quote by any key is genuine: only the attestation policy judges whose it is", t.TPM.Enabled && len(t.TPM.TrustedAKs) == 0},
		{"tee.snp.check_revocation = false", "AMD's revocation list is not looked at", t.SNP.Enabled && !t.SNP.CheckRevocation},
		{"tee.nvidia.check_revocation = false", "revoked devices of NVIDIA's are not told from others", t.NVIDIA.Enabled && !t.NVIDIA.CheckRevocation},
		{"tee.sample", "evidence that anyone can write is accepted as simulated; for interoperability tests only", t.Sample.Enabled},
	} {
		if d.on {
			w = append(w, d.key+": "+d.what)
		}
	}
	return w
}

// teePaths are the files and directories of the verifiers' configuration.
func (c *Config) teePaths() []*string {
	out := []*string{&c.Collateral.Dir, &c.TEE.SE.Image}
	for _, list := range [][]string{
		c.TEE.SNP.DevelopmentRoots, c.TEE.TDX.DevelopmentRoots, c.TEE.SGX.DevelopmentRoots, c.TEE.NVIDIA.DevelopmentRoots,
		c.TEE.TPM.TrustedAKs, c.TEE.CCA.TrustAnchors, c.TEE.CCA.DevelopmentAnchors, c.Collateral.Stores,
		c.TEE.SE.HostKeys, c.TEE.SE.Certificates, c.TEE.SE.Roots, c.TEE.SE.CRLs, c.TEE.SE.DevelopmentHostKeys,
	} {
		for i := range list {
			out = append(out, &list[i])
		}
	}
	return out
}
