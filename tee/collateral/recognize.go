package collateral

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/coffer-project/coffer/tee/snp"
)

// candidate is what a file seems to hold, before it is checked.
type candidate struct {
	item        Item
	body, chain []byte
	source      string
	fetched     time.Time
}

// recognized is what the content of a file says.
type recognized struct {
	candidates []candidate
	issuers    []*x509.Certificate // of others
}

func (r *recognized) add(i Item, err error, body, chain []byte) error {
	if err == nil {
		r.candidates = append(r.candidates, candidate{item: i, body: body, chain: chain})
	}
	return err
}

// recognize says what a file holds, by its content; its name counts only for
// what does not name itself.
func recognize(name string, data []byte) (recognized, error) {
	var r recognized
	trimmed := bytes.TrimSpace(data)
	switch {
	case len(trimmed) == 0:
		return r, errors.New("the file is empty")
	case path.Base(name) == "hsk_cek.cert": // as Trustee's store has it: <serial number>/hsk_cek.cert
		i, err := HSKCEKItem(path.Base(path.Dir(name)))
		return r, r.add(i, err, data, nil)
	case looksLikeHTML(trimmed):
		return r, errors.New("a page for browsers (HTML), no collateral")
	case trimmed[0] == '{':
		return r, r.json(trimmed)
	case trimmed[0] == '<' && bytes.Contains(trimmed[:min(len(trimmed), 4096)], []byte("SoftwareIdentity")):
		i, err := RIMItem(strings.TrimSuffix(path.Base(name), path.Ext(name)))
		if err != nil {
			err = errors.New("a reference manifest (RIM) without its identifier: name the file after it, for example NV_GPU_DRIVER_GH100_535.104.05.xml")
		}
		return r, r.add(i, err, data, nil)
	case utf8.Valid(trimmed) && bytes.Contains(trimmed, []byte("-----BEGIN ")):
		return r, r.pem(trimmed)
	}
	return r, r.der(derOfHex(data))
}

// pem reads blocks of certificates and revocation lists.
func (r *recognized) pem(text []byte) error {
	const most = 64
	for n := 0; len(bytes.TrimSpace(text)) > 0; n++ {
		block, rest := pem.Decode(text)
		if block == nil || n == most {
			return fmt.Errorf("expected at most %d blocks of PEM and nothing else", most)
		}
		if block.Type != "CERTIFICATE" && block.Type != "X509 CRL" {
			return fmt.Errorf("expected blocks CERTIFICATE and X509 CRL, got %.40q", block.Type)
		}
		if err := r.der(block.Bytes); err != nil {
			return err
		}
		text = rest
	}
	return r.amdChains()
}

// der reads a certificate or a revocation list.
func (r *recognized) der(der []byte) error {
	if c, err := x509.ParseCertificate(der); err == nil {
		switch c.Subject.CommonName {
		case "SEV-VCEK":
			i, err := vcekOf(c)
			return r.add(i, err, der, nil)
		case "SEV-VLEK":
			return errors.New("a VLEK certificate: it comes with the evidence, nobody fetches it")
		}
		r.issuers = append(r.issuers, c)
		return nil
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil || len(l.Raw) != len(der) {
		return errors.New("not recognised: expected an item of AMD's, Intel's, NVIDIA's or Hygon's service, certificates, a revocation list, or a bundle")
	}
	issuer := l.Issuer.CommonName
	if line, ok := strings.CutPrefix(issuer, "ARK-"); ok {
		// One root signs for both kinds of keys; which one this list is for
		// it does not say.
		for _, s := range []snp.Signer{snp.SignerVCEK, snp.SignerVLEK} {
			i, err := AMDItem(AMDCRL, snp.Generation(line), s)
			if err := r.add(i, err, der, nil); err != nil {
				return err
			}
		}
		return nil
	}
	for _, ca := range []string{"platform", "processor"} {
		if strings.Contains(strings.ToLower(issuer), "pck "+ca+" ca") {
			i, err := PCKCRLItem(ca)
			return r.add(i, err, der, nil)
		}
	}
	if strings.Contains(issuer, "SGX Root CA") {
		return r.add(RootCRLItem(), nil, der, nil)
	}
	return fmt.Errorf("a revocation list of %.80q: expected one of AMD or Intel", issuer)
}

// amdChains finds AMD's chains among the certificates.
func (r *recognized) amdChains() error {
	for _, root := range r.issuers {
		line, ok := strings.CutPrefix(root.Subject.CommonName, "ARK-")
		if !ok {
			continue
		}
		for _, c := range r.issuers {
			s := snp.SignerVCEK
			switch c.Subject.CommonName {
			case "SEV-" + line:
			case "SEV-VLEK-" + line:
				s = snp.SignerVLEK
			default:
				continue
			}
			i, err := AMDItem(AMDChain, snp.Generation(line), s)
			if err := r.add(i, err, pemOf(c, root), nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// vcekOf reads which chip and patch level a VCEK is for (AMD publication 57230,
// §3.1). Whether it is AMD's is for the check to say.
func vcekOf(c *x509.Certificate) (Item, error) {
	values := map[string][]byte{}
	for _, e := range c.Extensions {
		if tail, ok := strings.CutPrefix(e.Id.String(), "1.3.6.1.4.1.3704.1."); ok {
			values[tail] = e.Value
		}
	}
	var product string
	if _, err := asn1.Unmarshal(values["2"], &product); err != nil {
		return Item{}, fmt.Errorf("a VCEK certificate without the product's name: %w", err)
	}
	var t snp.TCB
	for extension, to := range map[string]*uint8{"3.1": &t.Bootloader, "3.2": &t.TEE, "3.3": &t.SNP, "3.8": &t.Microcode} {
		if err := level(values[extension], to); err != nil {
			return Item{}, fmt.Errorf("a VCEK certificate, extension %s: %w", extension, err)
		}
	}
	line, _, _ := strings.Cut(product, "-")
	if snp.Generation(line) == snp.Turin {
		t.FMC = new(uint8)
		if err := level(values["3.9"], t.FMC); err != nil {
			return Item{}, fmt.Errorf("a VCEK certificate, extension 3.9: %w", err)
		}
	}
	id := values["4"]
	if len(id) != 64 && len(id) != 8 {
		var octets []byte
		if rest, err := asn1.Unmarshal(id, &octets); err == nil && len(rest) == 0 {
			id = octets
		}
	}
	return VCEKItem(snp.Generation(line), id, t)
}

func level(der []byte, to *uint8) error {
	var n int
	if rest, err := asn1.Unmarshal(der, &n); err != nil || len(rest) > 0 || n < 0 || n > 0xFF {
		return fmt.Errorf("expected an INTEGER of 0 to 255, got %.16x", der)
	}
	*to = uint8(n)
	return nil
}

// json reads the forms of JSON that collateral comes in.
func (r *recognized) json(data []byte) error {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(data, &top); err != nil {
		return fmt.Errorf("not recognised: %w", err)
	}
	has := func(name string) bool { _, ok := top[name]; return ok }
	switch {
	case has("tcbInfo"), has("enclaveIdentity"):
		return r.document(data, nil, Standard)
	case has("collaterals"):
		return r.clientTool(top["collaterals"])
	case has("qe_identity") && has("tcb_info"):
		return r.quoteCollateral(data)
	case has("rim") && has("id"):
		var id string
		if err := json.Unmarshal(top["id"], &id); err != nil {
			return err
		}
		body, err := unwrapRIM(id, data)
		if err != nil {
			return err
		}
		i, err := RIMItem(id)
		return r.add(i, err, body, nil)
	case has("item") && has("sha256"):
		e, err := decodeEntry(data, nil)
		if err == nil && len(e.Body) == 0 {
			err = errors.New("it says where a certificate came from, which is not there")
		}
		if err != nil {
			return err
		}
		r.candidates = append(r.candidates, candidate{e.Item, e.Body, e.Chain, e.Source, e.Fetched})
		return nil
	}
	return errors.New("not recognised: JSON of another kind")
}

// document reads TCB info or an identity as Intel's service sends it.
func (r *recognized) document(data, chain []byte, u Update) error {
	var d struct {
		TCBInfo  *struct{ ID, FMSPC string } `json:"tcbInfo"`
		Identity *struct{ ID string }        `json:"enclaveIdentity"`
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return err
	}
	if (d.TCBInfo == nil) == (d.Identity == nil) {
		return errors.New("ambiguous: expected either TCB info or an enclave identity")
	}
	if d.TCBInfo != nil {
		fmspc, err := hex.DecodeString(d.TCBInfo.FMSPC)
		if err != nil || len(fmspc) != 6 {
			return fmt.Errorf("TCB info, fmspc: expected 6 bytes in hex, got %.32q", d.TCBInfo.FMSPC)
		}
		i, err := TCBInfoItem(strings.ToLower(d.TCBInfo.ID), [6]byte(fmspc), u)
		return r.add(i, err, data, chain)
	}
	kind := map[string]string{"QE": "sgx", "TD_QE": "tdx"}[d.Identity.ID]
	if kind == "" {
		return fmt.Errorf("the identity of an enclave %.16q: expected QE or TD_QE", d.Identity.ID)
	}
	i, err := QEIdentityItem(kind, u)
	return r.add(i, err, data, chain)
}
