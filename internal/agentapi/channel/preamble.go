package channel

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Protocol versions this build speaks.
const (
	MinVersion = 1
	MaxVersion = 1
)

// The preamble puts both ends of a byte stream that outlives its users into
// step. Either end may find the leftovers of an earlier session in the stream,
// so each discards everything until a frame that answers its own:
//
//	host → guest  HELLO(epoch, min, max)   repeated until answered
//	guest → host  ACK(epoch, version, boot id)
//	host → guest  GO(epoch)
//	guest → host  READY(epoch)             the multiplexer starts here
//
// A frame is 40 bytes: magic (8), type (1), zero (1), version a (2, big
// endian), version b (2), zero (2), epoch (8), boot id (16).
const (
	frameSize = 40

	frameHello = 1
	frameAck   = 2
	frameGo    = 3
	frameReady = 4
)

// magic cannot occur at the start of a multiplexer frame, whose first byte is
// the version 0.
var magic = [8]byte{0x89, 'C', 'O', 'F', 'F', 'E', 'R', '\n'}

// helloInterval is how long the host waits for an answer before it repeats a
// HELLO that a dying session may have swallowed.
const helloInterval = time.Second

type frame struct {
	kind     byte
	versionA uint16
	versionB uint16
	epoch    uint64
	bootID   [16]byte
}

func (f frame) encode() []byte {
	b := make([]byte, frameSize)
	copy(b, magic[:])
	b[8] = f.kind
	binary.BigEndian.PutUint16(b[10:], f.versionA)
	binary.BigEndian.PutUint16(b[12:], f.versionB)
	binary.BigEndian.PutUint64(b[16:], f.epoch)
	copy(b[24:], f.bootID[:])
	return b
}

// nextFrame discards bytes until a well-formed frame has been read.
func nextFrame(r *bufio.Reader) (frame, error) {
	matched := 0
	for {
		c, err := r.ReadByte()
		if err != nil {
			return frame{}, err
		}
		switch c {
		case magic[matched]:
			matched++
		case magic[0]:
			matched = 1
		default:
			matched = 0
		}
		if matched < len(magic) {
			continue
		}
		matched = 0
		// Peek, so that a magic inside a truncated frame is still found.
		rest, err := r.Peek(frameSize - len(magic))
		if err != nil {
			return frame{}, err
		}
		f := frame{
			kind:     rest[0],
			versionA: binary.BigEndian.Uint16(rest[2:]),
			versionB: binary.BigEndian.Uint16(rest[4:]),
			epoch:    binary.BigEndian.Uint64(rest[8:]),
			bootID:   [16]byte(rest[16:32]),
		}
		if f.kind < frameHello || f.kind > frameReady || rest[1] != 0 || rest[6] != 0 || rest[7] != 0 {
			continue
		}
		if _, err := r.Discard(len(rest)); err != nil {
			return frame{}, err
		}
		return f, nil
	}
}

// answerPreamble is the guest's side.
func answerPreamble(r *bufio.Reader, w io.Writer, bootID [16]byte) (version uint16, err error) {
	var current *frame
	for {
		f, err := nextFrame(r)
		if err != nil {
			return 0, err
		}
		switch f.kind {
		case frameHello:
			current = nil
			ack := frame{kind: frameAck, epoch: f.epoch, versionA: min(f.versionB, MaxVersion), versionB: MaxVersion, bootID: bootID}
			if ack.versionA < max(f.versionA, MinVersion) {
				ack.versionA = 0
			} else {
				current = &ack
			}
			if _, err := w.Write(ack.encode()); err != nil {
				return 0, err
			}
		case frameGo:
			if current == nil || f.epoch != current.epoch {
				continue
			}
			ready := frame{kind: frameReady, epoch: f.epoch, versionA: current.versionA, bootID: bootID}
			if _, err := w.Write(ready.encode()); err != nil {
				return 0, err
			}
			return current.versionA, nil
		}
	}
}

// ErrVersion is returned when host and guest have no protocol version in common.
var ErrVersion = errors.New("no common protocol version")

// offerPreamble is the host's side.
func offerPreamble(ctx context.Context, r *bufio.Reader, w io.Writer) (bootID [16]byte, err error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return bootID, err
	}
	epoch := binary.BigEndian.Uint64(random[:])
	hello := frame{kind: frameHello, versionA: MinVersion, versionB: MaxVersion, epoch: epoch}.encode()

	ctx, cancel := context.WithCancel(ctx)
	sent := make(chan error, 1)
	go func() {
		defer close(sent)
		tick := time.NewTicker(helloInterval)
		defer tick.Stop()
		for {
			if _, err := w.Write(hello); err != nil {
				sent <- err
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	// The writer must be done before GO is written: a HELLO after GO would
	// be read as the multiplexer's.
	stop := func() error { cancel(); return <-sent }

	for {
		f, err := nextFrame(r)
		if err != nil {
			_ = stop()
			return bootID, err
		}
		if f.kind != frameAck || f.epoch != epoch {
			continue
		}
		if err := stop(); err != nil {
			return bootID, err
		}
		if f.versionA < MinVersion || f.versionA > MaxVersion {
			return bootID, fmt.Errorf("%w: host speaks %d to %d, guest speaks up to %d; use a guest image of the same release", ErrVersion, MinVersion, MaxVersion, f.versionB)
		}
		bootID = f.bootID
		break
	}
	if _, err := w.Write(frame{kind: frameGo, epoch: epoch}.encode()); err != nil {
		return bootID, err
	}
	for {
		f, err := nextFrame(r)
		if err != nil {
			return bootID, err
		}
		if f.kind == frameReady && f.epoch == epoch {
			return bootID, nil
		}
	}
}
