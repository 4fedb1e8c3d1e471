package demo

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"sync"

	"github.com/coffer-project/coffer/tee/snp"
)

// capture is the host in its best place: between a guest and its security
// processor. It keeps every report that passes, as evidence to present later.
type capture struct {
	mu       sync.Mutex
	pending  bytes.Buffer
	evidence []json.RawMessage
}

// Frames of the port (tee/softtee/softport): 20 bytes of header with the kind
// at 5 and the payload's length at 16; kind 2 carries a report and then its
// certificates.
const (
	frameHeader = 20
	kindReport  = 2
)

type tapped struct {
	io.ReadWriter
	c *capture
}

// wrap returns rw with what is written to the guest recorded.
func (c *capture) wrap(rw io.ReadWriter) io.ReadWriter { return tapped{rw, c} }

func (t tapped) Write(p []byte) (int, error) {
	t.c.record(p)
	return t.ReadWriter.Write(p)
}

func (c *capture) record(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending.Write(p)
	for c.pending.Len() >= frameHeader {
		head := c.pending.Bytes()
		size := frameHeader + int(binary.BigEndian.Uint32(head[16:]))
		if c.pending.Len() < size {
			return
		}
		frame := bytes.Clone(c.pending.Next(size))
		if frame[5] != kindReport || size < frameHeader+snp.ReportSize {
			continue
		}
		report := frame[frameHeader : frameHeader+snp.ReportSize]
		certs, err := snp.ParseCertTable(frame[frameHeader+snp.ReportSize:])
		if err != nil {
			continue
		}
		evidence, err := snp.NewEvidence(report, certs)
		if err != nil {
			continue
		}
		if raw, err := json.Marshal(evidence); err == nil {
			c.evidence = append(c.evidence, raw)
		}
	}
}

// last is the newest evidence that passed, nil if none did.
func (c *capture) last() json.RawMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.evidence) == 0 {
		return nil
	}
	return c.evidence[len(c.evidence)-1]
}
