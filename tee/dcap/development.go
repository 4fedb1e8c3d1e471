package dcap

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Limits on a development root's file.
const (
	// MaxDevelopmentRoot bounds the file in bytes.
	MaxDevelopmentRoot = 1 << 20

	maxDevelopmentBlocks = 64
)

// Types of PEM blocks in a development root's file.
const (
	blockCertificate = "CERTIFICATE"
	blockCRL         = "X509 CRL"
	blockTCBInfo     = "TCB INFO"
	blockQEIdentity  = "QE IDENTITY"
)

// ParseDevelopmentRoot reads the file of a root that is not Intel's: PEM blocks
// without headers and with nothing between them, of at most
// [MaxDevelopmentRoot] bytes.
//
// The first block, "CERTIFICATE", is the self-signed root. If nothing follows,
// Collateral is nil, and a verifier asks its own source for collateral. Else the
// platforms' collateral follows, in any order, each document at most once, and
// each followed by the chain of its signer as "CERTIFICATE" blocks, signer
// first, without the root:
//
//   - "TCB INFO": the JSON that [Collateral].TCBInfo gives
//   - "QE IDENTITY": the JSON that [Collateral].QEIdentity gives
//   - "X509 CRL": the list of a PCK issuer, or, with no chain, that of the root
//
// Then Collateral has these documents and no others. Their signatures must be
// good under this root; their dates are not judged here.
//
// name is what claims and errors call the root.
func ParseDevelopmentRoot(name string, file []byte) (DevelopmentRoot, error) {
	d, err := parseDevelopmentRoot(name, file)
	if err != nil {
		return DevelopmentRoot{}, fmt.Errorf("dcap: development root %q: %w", name, err)
	}
	return d, nil
}

func parseDevelopmentRoot(name string, file []byte) (DevelopmentRoot, error) {
	blocks, err := splitBlocks(file)
	if err != nil {
		return DevelopmentRoot{}, err
	}
	if blocks[0].Type != blockCertificate {
		return DevelopmentRoot{}, fmt.Errorf("block 0: expected the root, %s, got %.32q", blockCertificate, blocks[0].Type)
	}
	d := DevelopmentRoot{Name: name, PEM: pem.EncodeToMemory(blocks[0])}
	set, err := Roots(d)
	if err != nil || len(blocks) == 1 {
		return d, err
	}
	f := developmentFile{roots: set, Static: Static{TCBInfos: map[Family]Signed{}, QEIdentities: map[Kind]Signed{}, PCKCRLs: map[CA]Signed{}}}
	for i := 1; i < len(blocks); {
		end := i + 1
		for end < len(blocks) && blocks[end].Type == blockCertificate {
			end++
		}
		if err := f.add(blocks[i], blocks[i+1:end], d.PEM); err != nil {
			return DevelopmentRoot{}, fmt.Errorf("block %d, %.32q: %w", i, blocks[i].Type, err)
		}
		i = end
	}
	d.Collateral = &f.Static
	return d, nil
}

// splitBlocks reads plain PEM blocks, and nothing else; there is at least one.
// Lines end in \n, or all in \r\n.
func splitBlocks(file []byte) ([]*pem.Block, error) {
	if len(file) > MaxDevelopmentRoot {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", MaxDevelopmentRoot, len(file))
	}
	rest := bytes.ReplaceAll(file, []byte("\r\n"), []byte("\n"))
	if n := len(file) - len(rest); n > 0 && bytes.Count(rest, []byte("\n")) != n {
		return nil, errors.New("expected lines that end alike, got \\n and \\r\\n")
	}
	if len(rest) > 0 && rest[len(rest)-1] != '\n' {
		rest = append(rest, '\n')
	}
	var out []*pem.Block
	for len(rest) > 0 {
		if len(out) == maxDevelopmentBlocks {
			return nil, fmt.Errorf("expected at most %d PEM blocks", maxDevelopmentBlocks)
		}
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, fmt.Errorf("block %d: expected PEM", len(out))
		}
		if len(block.Headers) > 0 || !bytes.Equal(pem.EncodeToMemory(block), rest[:len(rest)-len(after)]) {
			return nil, fmt.Errorf("block %d: expected plain PEM of 64 characters a line without headers and with nothing in between", len(out))
		}
		out = append(out, block)
		rest = after
	}
	if len(out) == 0 {
		return nil, errors.New("expected a root certificate in PEM, got nothing")
	}
	return out, nil
}

// developmentFile collects the documents of one root.
type developmentFile struct {
	Static

	roots *RootSet
}

// add checks a document and keeps it. root is PEM.
func (f *developmentFile) add(document *pem.Block, issuers []*pem.Block, root []byte) error {
	if len(issuers) == 0 {
		if document.Type != blockCRL {
			return errors.New("expected the signer's certificate behind it, got none")
		}
		return f.addRootCRL(document.Bytes)
	}
	s := Signed{Body: document.Bytes}
	for _, c := range issuers {
		s.IssuerChain = append(s.IssuerChain, pem.EncodeToMemory(c)...)
	}
	s.IssuerChain = append(s.IssuerChain, root...)
	switch document.Type {
	case blockTCBInfo:
		t, err := ParseTCBInfo(s, f.roots)
		if err != nil {
			return err
		}
		return keep(f.TCBInfos, Family{map[string]Kind{"SGX": SGX, "TDX": TDX}[t.ID], t.FMSPC}, s, t.Root)
	case blockQEIdentity:
		q, err := ParseQEIdentity(s, f.roots)
		if err != nil {
			return err
		}
		k, ok := map[string]Kind{"QE": SGX, "TD_QE": TDX}[q.ID]
		if !ok {
			return fmt.Errorf("id: expected QE or TD_QE, got %.20q", q.ID)
		}
		return keep(f.QEIdentities, k, s, q.Root)
	case blockCRL:
		certs, anchor, err := splitChain(s.IssuerChain, 2, f.roots)
		if err != nil {
			return fmt.Errorf("issuer chain: %w", err)
		}
		ca, err := pckIssuer(certs[0], anchor)
		if err != nil {
			return fmt.Errorf("issuer chain: %w", err)
		}
		c, err := parsePCKCRL(s, ca, f.roots)
		if err != nil {
			return err
		}
		return keep(f.PCKCRLs, ca, s, c.root)
	}
	return fmt.Errorf("expected %s, %s or %s", blockTCBInfo, blockQEIdentity, blockCRL)
}

func (f *developmentFile) addRootCRL(der []byte) error {
	c, err := parseRootCRL(der, f.roots)
	if err != nil {
		return err
	}
	if f.Root != nil {
		return errors.New("expected the root's list once")
	}
	f.Root = der
	return ofDevelopment(c.root)
}

// keep stores a document that the development root vouches for.
func keep[K comparable](m map[K]Signed, key K, s Signed, r *Root) error {
	if _, twice := m[key]; twice {
		return fmt.Errorf("expected the document of %v once", key)
	}
	m[key] = s
	return ofDevelopment(r)
}

func ofDevelopment(r *Root) error {
	if !r.Development {
		return fmt.Errorf("expected a signature under this root, got one under %q", r.Name)
	}
	return nil
}

// EncodeDevelopmentRoot writes the file that [ParseDevelopmentRoot] reads. root
// is the root certificate; s is nil for a bare root.
func EncodeDevelopmentRoot(root *x509.Certificate, s *Static) ([]byte, error) {
	out := pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: root.Raw})
	if s == nil {
		return out, nil
	}
	var err error
	add := func(kind string, d Signed) {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: d.Body})...)
		issuers, splitErr := splitBlocks(d.IssuerChain)
		err = errors.Join(err, splitErr)
		for _, c := range issuers {
			if !bytes.Equal(c.Bytes, root.Raw) {
				out = append(out, pem.EncodeToMemory(c)...)
			}
		}
	}
	byFamily := func(a, b Family) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), bytes.Compare(a.FMSPC[:], b.FMSPC[:]))
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.TCBInfos), byFamily) {
		add(blockTCBInfo, s.TCBInfos[k])
	}
	for _, k := range slices.Sorted(maps.Keys(s.QEIdentities)) {
		add(blockQEIdentity, s.QEIdentities[k])
	}
	for _, ca := range slices.Sorted(maps.Keys(s.PCKCRLs)) {
		add(blockCRL, s.PCKCRLs[ca])
	}
	if s.Root != nil {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: blockCRL, Bytes: s.Root})...)
	}
	if err != nil {
		return nil, fmt.Errorf("dcap: development root: issuer chain: %w", err)
	}
	return out, nil
}
