package tdxattest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// The quote generation service's protocol (Intel SGXDataCenterAttestationPrimitives,
// QuoteGeneration/quote_wrapper/qgs_msg_lib, qgs_msg_header_t and
// qgs_msg_get_quote_req_t): little-endian messages, each behind its length in
// four bytes, big-endian.
const (
	qgsMajor     = 1
	qgsGetQuote  = 0
	qgsQuote     = 1
	qgsHeader    = 16 // major, minor (2 bytes each), type, size, error (4 bytes each)
	qgsSizes     = 8  // of the request: report, list of ids; of the response: selected id, quote
	qgsPrefix    = 4
	maxQuote     = 128 << 10
	quoteTimeout = 30 * time.Second
)

// Dial connects to the host's quote generation service.
type Dial func(ctx context.Context) (net.Conn, error)

// quoteFromService asks the service for a quote over a TDREPORT. The host runs
// the service: nothing it says is believed before a verifier has checked it.
func quoteFromService(ctx context.Context, dial Dial, tdreport []byte) (quote []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, quoteTimeout)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("quote generation service: %w", err)
	}
	defer func() { _ = conn.Close() }()
	// A stream without deadlines of its own ends when the context does.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := conn.Write(qgsRequest(tdreport)); err != nil {
		return nil, fmt.Errorf("quote generation service: %w", errors.Join(context.Cause(ctx), err))
	}
	var prefix [qgsPrefix]byte
	if _, err := io.ReadFull(conn, prefix[:]); err != nil {
		return nil, fmt.Errorf("quote generation service: %w", errors.Join(context.Cause(ctx), err))
	}
	size := binary.BigEndian.Uint32(prefix[:])
	if size < qgsHeader || size > maxQuote {
		return nil, fmt.Errorf("quote generation service: message length: expected %d to %d, got %d", qgsHeader, maxQuote, size)
	}
	message := make([]byte, size)
	if _, err := io.ReadFull(conn, message); err != nil {
		return nil, fmt.Errorf("quote generation service: %w", errors.Join(context.Cause(ctx), err))
	}
	return qgsResponse(message)
}

func qgsRequest(tdreport []byte) []byte {
	size := uint32(qgsHeader + qgsSizes + len(tdreport)) //nolint:gosec // a TDREPORT has 1024 bytes
	le := binary.LittleEndian
	m := binary.BigEndian.AppendUint32(nil, size)
	m = le.AppendUint16(m, qgsMajor)
	m = le.AppendUint16(m, 0)
	m = le.AppendUint32(m, qgsGetQuote)
	m = le.AppendUint32(m, size)
	m = le.AppendUint32(m, 0)
	m = le.AppendUint32(m, uint32(len(tdreport))) //nolint:gosec // as above
	m = le.AppendUint32(m, 0)                     // any attestation key will do
	return append(m, tdreport...)
}

// qgsResponse takes the quote out of an answer.
func qgsResponse(m []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(m) < qgsHeader {
		return nil, fmt.Errorf("quote generation service: expected a header of %d bytes, got %d", qgsHeader, len(m))
	}
	if got := le.Uint16(m); got != qgsMajor {
		return nil, fmt.Errorf("quote generation service: major version: expected %d, got %d", qgsMajor, got)
	}
	if got := le.Uint32(m[12:]); got != 0 {
		return nil, fmt.Errorf("quote generation service: it refused with error %#x; its log on the host says why", got)
	}
	if got := le.Uint32(m[4:]); got != qgsQuote {
		return nil, fmt.Errorf("quote generation service: message type: expected %d, got %d", qgsQuote, got)
	}
	if got := le.Uint32(m[8:]); uint64(got) != uint64(len(m)) {
		return nil, fmt.Errorf("quote generation service: size: expected %d, got %d", len(m), got)
	}
	if len(m) < qgsHeader+qgsSizes {
		return nil, fmt.Errorf("quote generation service: expected the sizes of a quote, got %d bytes", len(m))
	}
	id, quote := uint64(le.Uint32(m[16:])), uint64(le.Uint32(m[20:]))
	if body := uint64(len(m) - qgsHeader - qgsSizes); quote == 0 || id+quote != body {
		return nil, fmt.Errorf("quote generation service: id and quote: expected %d bytes in all, got %d and %d", body, id, quote)
	}
	return m[qgsHeader+qgsSizes+id:], nil
}
