// Package softport is the way from a guest to the software TEE: a small
// request and response protocol over a virtio-serial port, in the place of
// /dev/sev-guest.
//
// A frame is 20 bytes of header and then the payload; numbers are big-endian:
//
//	0  4  magic "CSTP"
//	4  1  protocol version, 1
//	5  1  kind
//	6  2  zero
//	8  8  identifier: a response repeats that of its request
//	16 4  length of the payload
//
//	kind 1, guest to host: request of an SEV-SNP report. Payload: 64 bytes of
//	        report data.
//	kind 2, host to guest: report. Payload: the report (1184 bytes), then a
//	        certificate table as hardware hosts supply it (see tee/snp).
//	kind 3, host to guest: refusal. Payload: at most 512 bytes of text.
//	kind 4, guest to host: request of a TDX quote. Payload: 64 bytes of report
//	        data.
//	kind 5, host to guest: quote. Payload: the quote's length (4 bytes, 1 to
//	        16 KiB), the quote, and the event log as it goes into evidence
//	        (at most 64 KiB, may be empty).
//	kind 6, guest to host: extension of RTMR 3. Payload: 48 bytes of digest; or
//	        nothing, to read the register only.
//	kind 7, host to guest: RTMR 3. Payload: its 48 bytes, after the extension.
//
// A host answers the requests of the one format that the guest was launched
// with and refuses the others.
//
// Neither side trusts the other: lengths are checked against the kind before
// anything is allocated. That a response comes from the software TEE and not
// from somebody else on the host is not checked here, nor could it be: the
// software TEE is development equipment, and its reports say so.
package softport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/coffer-project/coffer/tee/snp"
)

// PortName is the name of the virtio-serial port.
const PortName = "org.coffer.softtee.0"

// ReportDataSize is the size of the report data in bytes.
const ReportDataSize = 64

const (
	magic      = "CSTP"
	version    = 1
	headerSize = 20

	kindRequest      = 1
	kindReport       = 2
	kindRefusal      = 3
	kindQuoteRequest = 4
	kindQuote        = 5
	kindExtend       = 6
	kindRegister     = 7

	maxTable    = 64 << 10
	maxRefusal  = 512
	quoteLength = 4
	maxQuote    = 16 << 10
	maxEventLog = 64 << 10
)

// ErrFrame is wrapped by every error about a malformed frame. The stream cannot
// be used after it.
var ErrFrame = errors.New("softport: malformed frame")

type frame struct {
	kind    byte
	id      uint64
	payload []byte
}

// readFrame reads one frame, of a kind for which limits has a range.
func readFrame(r io.Reader, limits map[byte][2]uint32) (frame, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err // io.EOF between frames
	}
	if string(head[:4]) != magic || head[4] != version {
		return frame{}, fmt.Errorf("%w: expected %q version %d, got %q version %d", ErrFrame, magic, version, head[:4], head[4])
	}
	f := frame{kind: head[5], id: binary.BigEndian.Uint64(head[8:])}
	limit, ok := limits[f.kind]
	if !ok {
		return frame{}, fmt.Errorf("%w: kind %d is not expected here", ErrFrame, f.kind)
	}
	if head[6] != 0 || head[7] != 0 {
		return frame{}, fmt.Errorf("%w: reserved bytes are not zero", ErrFrame)
	}
	n := binary.BigEndian.Uint32(head[16:])
	if n < limit[0] || n > limit[1] {
		return frame{}, fmt.Errorf("%w: kind %d: expected a payload of %d to %d bytes, got %d", ErrFrame, f.kind, limit[0], limit[1], n)
	}
	f.payload = make([]byte, n)
	if _, err := io.ReadFull(r, f.payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	return f, nil
}

func writeFrame(w io.Writer, f frame) error {
	b := make([]byte, headerSize, headerSize+len(f.payload))
	copy(b, magic)
	b[4], b[5] = version, f.kind
	binary.BigEndian.PutUint64(b[8:], f.id)
	binary.BigEndian.PutUint32(b[16:], uint32(len(f.payload)))
	_, err := w.Write(append(b, f.payload...))
	return err
}

// Format is what evidence looks like.
type Format uint8

// The formats.
const (
	// SNP are SEV-SNP reports.
	SNP Format = iota
	// TDX are TDX quotes.
	TDX
)

// RegisterSize is the size of a TDX register in bytes.
const RegisterSize = 48

// Request is what a guest asks for: evidence over ReportData, or (Register, with
// format TDX) the value of RTMR 3, after it was extended by the digest if there
// is one.
type Request struct {
	ID         uint64
	Format     Format
	ReportData [ReportDataSize]byte
	Register   bool
	Digest     *[RegisterSize]byte
}

// ReadRequest reads the next request of a guest. It returns io.EOF where the
// stream ends between requests.
func ReadRequest(r io.Reader) (Request, error) {
	size := [2]uint32{ReportDataSize, ReportDataSize}
	f, err := readFrame(r, map[byte][2]uint32{kindRequest: size, kindQuoteRequest: size, kindExtend: {0, RegisterSize}})
	if err != nil {
		return Request{}, err
	}
	if f.kind == kindExtend {
		q := Request{ID: f.id, Format: TDX, Register: true}
		switch len(f.payload) {
		case 0:
		case RegisterSize:
			q.Digest = (*[RegisterSize]byte)(f.payload)
		default:
			return Request{}, fmt.Errorf("%w: kind %d: expected a payload of 0 or %d bytes, got %d", ErrFrame, f.kind, RegisterSize, len(f.payload))
		}
		return q, nil
	}
	q := Request{ID: f.id, ReportData: [ReportDataSize]byte(f.payload)}
	if f.kind == kindQuoteRequest {
		q.Format = TDX
	}
	return q, nil
}

func writeRequest(w io.Writer, q Request) error {
	if q.Register {
		f := frame{kind: kindExtend, id: q.ID}
		if q.Digest != nil {
			f.payload = q.Digest[:]
		}
		return writeFrame(w, f)
	}
	kind := byte(kindRequest)
	if q.Format == TDX {
		kind = kindQuoteRequest
	}
	return writeFrame(w, frame{kind: kind, id: q.ID, payload: q.ReportData[:]})
}

// WriteReport answers the request id with a report and its certificates.
func WriteReport(w io.Writer, id uint64, report []byte, certs []snp.Certificate) error {
	if len(report) != snp.ReportSize {
		return fmt.Errorf("softport: report: expected %d bytes, got %d", snp.ReportSize, len(report))
	}
	table, err := snp.EncodeCertTable(certs)
	if err != nil {
		return err
	}
	if len(table) > maxTable {
		return fmt.Errorf("softport: certificate table: expected at most %d bytes, got %d", maxTable, len(table))
	}
	payload := append(append([]byte(nil), report...), table...)
	return writeFrame(w, frame{kind: kindReport, id: id, payload: payload})
}

// WriteQuote answers the request id with a quote and the event log, which may be
// empty.
func WriteQuote(w io.Writer, id uint64, quote, log []byte) error {
	if len(quote) == 0 || len(quote) > maxQuote || len(log) > maxEventLog {
		return fmt.Errorf("softport: expected a quote of 1 to %d bytes and an event log of at most %d, got %d and %d", maxQuote, maxEventLog, len(quote), len(log))
	}
	payload := binary.BigEndian.AppendUint32(nil, uint32(len(quote)))
	return writeFrame(w, frame{kind: kindQuote, id: id, payload: append(append(payload, quote...), log...)})
}

// WriteRegister answers the request id with the value of RTMR 3.
func WriteRegister(w io.Writer, id uint64, value [RegisterSize]byte) error {
	return writeFrame(w, frame{kind: kindRegister, id: id, payload: value[:]})
}

// WriteRefusal answers the request id with a reason; text beyond 512 bytes is
// cut.
func WriteRefusal(w io.Writer, id uint64, reason string) error {
	return writeFrame(w, frame{kind: kindRefusal, id: id, payload: []byte(reason[:min(len(reason), maxRefusal)])})
}

// response is what the host answered: a report, a quote, or neither.
type response struct {
	id      uint64
	report  []byte
	certs   []snp.Certificate
	quote   []byte
	log     []byte
	rtmr    *[RegisterSize]byte
	refusal string
}

// readResponse reads an answer to a request, or a refusal.
func readResponse(r io.Reader, q Request) (response, error) {
	limits := map[byte][2]uint32{kindRefusal: {0, maxRefusal}}
	switch {
	case q.Register:
		limits[kindRegister] = [2]uint32{RegisterSize, RegisterSize}
	case q.Format == TDX:
		limits[kindQuote] = [2]uint32{quoteLength + 1, quoteLength + maxQuote + maxEventLog}
	default:
		limits[kindReport] = [2]uint32{snp.ReportSize, snp.ReportSize + maxTable}
	}
	f, err := readFrame(r, limits)
	if err != nil {
		return response{}, err
	}
	switch f.kind {
	case kindRegister:
		return response{id: f.id, rtmr: (*[RegisterSize]byte)(f.payload)}, nil
	case kindQuote:
		n, rest := binary.BigEndian.Uint32(f.payload), f.payload[quoteLength:]
		if n == 0 || n > maxQuote || uint64(n) > uint64(len(rest)) || len(rest)-int(n) > maxEventLog {
			return response{}, fmt.Errorf("%w: expected a quote of 1 to %d bytes and an event log of at most %d, got a quote of %d in %d bytes", ErrFrame, maxQuote, maxEventLog, n, len(rest))
		}
		return response{id: f.id, quote: rest[:n:n], log: rest[n:]}, nil
	case kindReport:
		certs, err := snp.ParseCertTable(f.payload[snp.ReportSize:])
		if err != nil {
			return response{}, fmt.Errorf("%w: %w", ErrFrame, err)
		}
		return response{id: f.id, report: f.payload[:snp.ReportSize], certs: certs}, nil
	}
	return response{id: f.id, refusal: string(f.payload)}, nil
}
