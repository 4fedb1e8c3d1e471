package snp

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// certGUIDs are the identifiers in the certificate table of an extended guest
// request (GHCB specification, publication 56421, §4.1.8).
func certGUIDs() map[string]CertType {
	return map[string]CertType{
		"c0b406a4-a803-4952-9743-3fb6014cd0ae": CertARK,
		"4ab7b379-bbac-4fe4-a02f-05aef327c782": CertASK,
		"63da758d-e664-4564-adc5-f4b93be8accd": CertVCEK,
		"a8074bc2-a25a-483e-aae6-39c045a0b8a1": CertVLEK,
		"92f81bc3-5811-4d3d-97ff-d19f88dc67ea": CertCRL,
	}
}

// entrySize is the size of an entry: GUID, offset and length.
const entrySize = 24

// ParseCertTable reads the host's certificate table: entries of GUID, offset
// and length (24 bytes, little-endian), ended by an entry of zeros, then the
// certificates, which do not overlap the entries. A table of zeros is no
// certificates.
func ParseCertTable(table []byte) ([]Certificate, error) {
	count, err := countEntries(table)
	if err != nil || count == 0 {
		return nil, err
	}
	certs := make([]Certificate, count)
	kinds := certGUIDs()
	begin := uint64(count+1) * entrySize
	left := uint64(len(table)) // entries that share bytes would make more of a table than it is
	for i := range certs {
		head := table[i*entrySize:]
		offset, length := uint64(binary.LittleEndian.Uint32(head[16:])), uint64(binary.LittleEndian.Uint32(head[20:]))
		switch {
		case length == 0 || length > MaxCertificate:
			return nil, fmt.Errorf("snp: certificate table: entry %d: length: expected 1 to %d bytes, got %d", i, MaxCertificate, length)
		case offset < begin || offset+length > uint64(len(table)):
			return nil, fmt.Errorf("snp: certificate table: entry %d: expected bytes from %d to %d, got %d to %d", i, begin, len(table), offset, offset+length)
		case length > left:
			return nil, fmt.Errorf("snp: certificate table: entry %d: the entries share bytes", i)
		}
		left -= length
		id := guidText([16]byte(head))
		certs[i] = Certificate{Type: kinds[id], Data: append([]byte(nil), table[offset:offset+length]...)}
		if certs[i].Type == "" {
			certs[i].Type, certs[i].GUID = CertOther, id
		}
	}
	return certs, nil
}

// countEntries finds the closing entry.
func countEntries(table []byte) (int, error) {
	if allZero(table) {
		return 0, nil
	}
	for n := 0; ; n++ {
		at := n * entrySize
		switch {
		case len(table)-at < entrySize:
			return 0, fmt.Errorf("snp: certificate table: ends at byte %d without the closing entry", len(table))
		case allZero(table[at : at+entrySize]):
			if n == 0 {
				return 0, errors.New("snp: certificate table: expected entries, got the closing one first and bytes after it")
			}
			return n, nil
		case n == MaxCertificates:
			return 0, fmt.Errorf("snp: certificate table: expected at most %d entries", MaxCertificates)
		}
	}
}

// guidText is the usual text form. The table holds GUIDs in the byte order of
// RFC 4122, as the text has them.
func guidText(g [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[0:4], g[4:6], g[6:8], g[8:10], g[10:16])
}

// EncodeCertTable writes the table that [ParseCertTable] reads.
func EncodeCertTable(certs []Certificate) ([]byte, error) {
	if len(certs) > MaxCertificates {
		return nil, fmt.Errorf("snp: certificate table: expected at most %d entries, got %d", MaxCertificates, len(certs))
	}
	ids := map[CertType]string{}
	for id, kind := range certGUIDs() {
		ids[kind] = id
	}
	table := make([]byte, entrySize*(len(certs)+1))
	for i, c := range certs {
		text := ids[c.Type]
		if c.Type == CertOther {
			text = c.GUID
		}
		id, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
		if err != nil || len(id) != 16 {
			return nil, fmt.Errorf("snp: certificate table: entry %d: type %q with GUID %q has no identifier", i, c.Type, c.GUID)
		}
		if len(c.Data) == 0 || len(c.Data) > MaxCertificate {
			return nil, fmt.Errorf("snp: certificate table: entry %d: expected 1 to %d bytes, got %d", i, MaxCertificate, len(c.Data))
		}
		head := table[i*entrySize:]
		copy(head, id)
		binary.LittleEndian.PutUint32(head[16:], uint32(len(table)))
		binary.LittleEndian.PutUint32(head[20:], uint32(len(c.Data)))
		table = append(table, c.Data...) //nolint:makezero // behind the entries, which are filled in
	}
	return table, nil
}
