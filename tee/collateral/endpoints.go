package collateral

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"github.com/coffer-project/coffer/tee/snp"
)

// Endpoints are the services that collateral is fetched from. An empty one is
// the vendor's own. What they send is signed and checked, so a mirror need not
// be trusted, and may be plain http; it sees which chips are asked for.
type Endpoints struct {
	// KDS is AMD's key distribution service, or a mirror with the same paths.
	KDS string
	// PCS is Intel's provisioning certification service, or a PCCS. A path
	// /sgx/certification/v4/ at its end, as the configuration of Intel's
	// library has it, is understood.
	PCS string
	// IntelRootCRL is the whole URL of the root's revocation list. Empty: its
	// place at Intel, or that of the PCCS where PCS names one.
	IntelRootCRL string
	// RIM is NVIDIA's service of reference manifests.
	RIM string
	// OCSP is NVIDIA's responder.
	OCSP string
	// Hygon is Hygon's certificate service.
	Hygon string
}

// The vendors' services.
const (
	amdKDS       = "https://kdsintf.amd.com"                                           // AMD publication 57230, §4.1
	intelPCS     = "https://api.trustedservices.intel.com"                             // Intel PCS API v4
	intelRootCRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der" // distribution point of Intel's root
	nvidiaRIM    = "https://rim.attestation.nvidia.com"                                // NVIDIA RIM service, GET /v1/rim/{id}
	nvidiaOCSP   = "http://ocsp.ndis.nvidia.com"                                       // authority information of NVIDIA's certificates
	hygonCert    = "https://cert.hygon.cn"                                             // confidential-containers/trustee@78962cd4, deps/verifier/src/csv
)

// normalize fills in the vendors' services and checks the others.
func (e Endpoints) normalize() (Endpoints, error) {
	if e.IntelRootCRL == "" {
		e.IntelRootCRL = intelRootCRL
		if base := pcsBase(e.PCS); base != "" && base != intelPCS {
			e.IntelRootCRL = base + "/sgx/certification/v4/rootcacrl"
		}
	}
	e.PCS = pcsBase(e.PCS)
	for _, f := range []struct {
		name, vendor string
		to           *string
	}{
		{"KDS", amdKDS, &e.KDS}, {"PCS", intelPCS, &e.PCS}, {"IntelRootCRL", "", &e.IntelRootCRL},
		{"RIM", nvidiaRIM, &e.RIM}, {"OCSP", nvidiaOCSP, &e.OCSP}, {"Hygon", hygonCert, &e.Hygon},
	} {
		if *f.to == "" {
			*f.to = f.vendor
		}
		*f.to = strings.TrimRight(*f.to, "/")
		u, err := url.Parse(*f.to)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return e, fmt.Errorf("collateral: endpoint %s: expected an https:// or http:// URL without query, got %.200q", f.name, *f.to)
		}
	}
	return e, nil
}

// pcsBase is the URL without the path of the older interface.
func pcsBase(s string) string {
	s = strings.TrimRight(s, "/")
	for _, path := range []string{"/sgx/certification/v4", "/tdx/certification/v4"} {
		s = strings.TrimSuffix(s, path)
	}
	return s
}

// url is where an item is.
func (e Endpoints) url(i Item) (string, error) {
	parts := strings.Split(i.ID, "/")
	switch i.Kind {
	case VCEK:
		g, chip, tcb, err := i.vcek()
		if err != nil {
			return "", err
		}
		fmc := ""
		if tcb.FMC != nil {
			fmc = fmt.Sprintf("fmcSPL=%02d&", *tcb.FMC)
		}
		return fmt.Sprintf("%s/vcek/v1/%s/%s?%sblSPL=%02d&teeSPL=%02d&snpSPL=%02d&ucodeSPL=%02d",
			e.KDS, g, hex.EncodeToString(chip), fmc, tcb.Bootloader, tcb.TEE, tcb.SNP, tcb.Microcode), nil
	case AMDChain, AMDCRL:
		g, s := i.amd()
		document := "cert_chain"
		if i.Kind == AMDCRL {
			document = "crl"
		}
		return fmt.Sprintf("%s/%s/v1/%s/%s", e.KDS, signerPath(s), g, document), nil
	case TCBInfo:
		return fmt.Sprintf("%s/%s/certification/v4/tcb?fmspc=%s&update=%s", e.PCS, parts[0], strings.ToUpper(parts[1]), parts[2]), nil
	case QEIdentity:
		return fmt.Sprintf("%s/%s/certification/v4/qe/identity?update=%s", e.PCS, parts[0], parts[1]), nil
	case PCKCRL:
		return fmt.Sprintf("%s/sgx/certification/v4/pckcrl?ca=%s&encoding=der", e.PCS, i.ID), nil
	case RootCRL:
		return e.IntelRootCRL, nil
	case RIM:
		return e.RIM + "/v1/rim/" + url.PathEscape(i.ID), nil
	case OCSP:
		return e.OCSP, nil
	case HSKCEK:
		return e.Hygon + "/hsk_cek?snumber=" + url.QueryEscape(i.ID), nil
	}
	return "", fmt.Errorf("collateral: %s comes from no service", i)
}

func signerPath(s snp.Signer) string { return strings.ToLower(s.String()) }
