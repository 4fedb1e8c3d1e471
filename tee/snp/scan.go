package snp

import (
	"math"

	"github.com/coffer-project/coffer/internal/jsonscan"
)

// scanEvidence reads evidence of the form that attesters write, in one pass:
// a handshake spent more time on its numbers than on its signature. It returns
// false for everything else, broken or merely unusual, which strictjson then
// judges. What it accepts, strictjson accepts with the same result.
func scanEvidence(data []byte) (*Evidence, bool) {
	if len(data) > MaxEvidence {
		return nil, false
	}
	r := jsonscan.NewReader(data)
	e := new(Evidence)
	var room []byte // for the bytes of certificates: one takes two characters or more
	ok := r.Object(func(name []byte) bool {
		switch string(name) {
		case "attestation_report":
			return scanReport(r, &e.AttestationReport)
		case "cert_chain":
			if r.Null() {
				return true
			}
			e.CertChain = []Certificate{}
			return r.Array(func() bool {
				if room == nil {
					room = make([]byte, 0, len(data)/2)
				}
				var c Certificate
				if len(e.CertChain) == MaxCertificates || !scanCertificate(r, &c, &room) {
					return false
				}
				e.CertChain = append(e.CertChain, c)
				return true
			})
		}
		return false
	})
	return e, ok && r.End()
}

// scanCertificate reads a certificate; its bytes take room.
func scanCertificate(r *jsonscan.Reader, c *Certificate, room *[]byte) bool {
	return r.Object(func(name []byte) (ok bool) {
		switch string(name) {
		case "cert_type":
			ok = scanType(r, c)
		case "data":
			before := len(*room)
			if *room, ok = r.Bytes(*room, MaxCertificate); ok {
				c.Data = (*room)[before:len(*room):len(*room)]
			}
		}
		return ok
	}) && c.Type != "" && c.Data != nil
}

func scanType(r *jsonscan.Reader, c *Certificate) bool {
	if r.AtObject() {
		c.Type = CertOther
		return r.Object(func(name []byte) bool {
			text, ok := r.Text()
			c.GUID = string(text)
			return ok && string(name) == "OTHER" && isGUID(text)
		}) && c.GUID != ""
	}
	text, ok := r.Text()
	switch t := CertType(text); t {
	case CertVCEK, CertVLEK, CertASK, CertARK, CertCRL, CertEmpty:
		c.Type = t
		return ok
	}
	return false
}

// isGUID is stricter than the long way: a GUID as everybody writes them.
func isGUID(text []byte) bool {
	if len(text) != len("00112233-4455-6677-8899-aabbccddeeff") {
		return false
	}
	for _, c := range text {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && c != '-' {
			return false
		}
	}
	return true
}

func scanReport(r *jsonscan.Reader, p *Report) bool {
	return r.Object(func(name []byte) bool {
		switch string(name) {
		case "version":
			return scan32(r, &p.Version)
		case "guest_svn":
			return scan32(r, &p.GuestSVN)
		case "policy":
			return scan64(r, &p.Policy)
		case "family_id":
			return scanBytes(r, p.FamilyID[:])
		case "image_id":
			return scanBytes(r, p.ImageID[:])
		case "vmpl":
			return scan32(r, &p.VMPL)
		case "sig_algo":
			return scan32(r, &p.SigAlgo)
		case "current_tcb":
			return scanTCB(r, &p.CurrentTCB)
		case "plat_info":
			return scan64(r, &p.PlatInfo)
		case "key_info":
			return scan32(r, &p.KeyInfo)
		case "report_data":
			return scanBytes(r, p.ReportData[:])
		case "measurement":
			return scanBytes(r, p.Measurement[:])
		case "host_data":
			return scanBytes(r, p.HostData[:])
		case "id_key_digest":
			return scanBytes(r, p.IDKeyDigest[:])
		case "author_key_digest":
			return scanBytes(r, p.AuthorKeyDigest[:])
		case "report_id":
			return scanBytes(r, p.ReportID[:])
		case "report_id_ma":
			return scanBytes(r, p.ReportIDMA[:])
		case "reported_tcb":
			return scanTCB(r, &p.ReportedTCB)
		case "cpuid_fam_id":
			return scanOptional8(r, &p.CPUIDFamily)
		case "cpuid_mod_id":
			return scanOptional8(r, &p.CPUIDModel)
		case "cpuid_step":
			return scanOptional8(r, &p.CPUIDStepping)
		case "chip_id":
			return scanBytes(r, p.ChipID[:])
		case "committed_tcb":
			return scanTCB(r, &p.CommittedTCB)
		case "current":
			return scanVersion(r, &p.Current)
		case "committed":
			return scanVersion(r, &p.Committed)
		case "launch_tcb":
			return scanTCB(r, &p.LaunchTCB)
		case "launch_mit_vector":
			return scanOptional64(r, &p.LaunchMitigation)
		case "current_mit_vector":
			return scanOptional64(r, &p.CurrentMitigation)
		case "signature":
			return scanSignature(r, &p.Signature)
		}
		return false
	})
}

func scanTCB(r *jsonscan.Reader, t *TCB) bool {
	return r.Object(func(name []byte) bool {
		switch string(name) {
		case "fmc":
			return scanOptional8(r, &t.FMC)
		case "bootloader":
			return scan8(r, &t.Bootloader)
		case "tee":
			return scan8(r, &t.TEE)
		case "snp":
			return scan8(r, &t.SNP)
		case "microcode":
			return scan8(r, &t.Microcode)
		}
		return false
	})
}

func scanVersion(r *jsonscan.Reader, v *FirmwareVersion) bool {
	return r.Object(func(name []byte) bool {
		switch string(name) {
		case "major":
			return scan8(r, &v.Major)
		case "minor":
			return scan8(r, &v.Minor)
		case "build":
			return scan8(r, &v.Build)
		}
		return false
	})
}

func scanSignature(r *jsonscan.Reader, s *Signature) bool {
	return r.Object(func(name []byte) bool {
		switch string(name) {
		case "r":
			return scanBytes(r, s.R[:])
		case "s":
			return scanBytes(r, s.S[:])
		}
		return false
	})
}

// scanBytes reads exactly as many bytes as there is room for.
func scanBytes(r *jsonscan.Reader, to []byte) bool {
	got, ok := r.Bytes(to[:0], len(to))
	return ok && len(got) == len(to)
}

func scan8(r *jsonscan.Reader, to *uint8) bool {
	n, ok := r.Uint(math.MaxUint8)
	*to = uint8(n)
	return ok
}

func scan32(r *jsonscan.Reader, to *uint32) bool {
	n, ok := r.Uint(math.MaxUint32)
	*to = uint32(n)
	return ok
}

func scan64(r *jsonscan.Reader, to *uint64) (ok bool) {
	*to, ok = r.Uint(math.MaxUint64)
	return ok
}

func scanOptional8(r *jsonscan.Reader, to **uint8) bool {
	if r.Null() {
		return true
	}
	*to = new(uint8)
	return scan8(r, *to)
}

func scanOptional64(r *jsonscan.Reader, to **uint64) bool {
	if r.Null() {
		return true
	}
	*to = new(uint64)
	return scan64(r, *to)
}
