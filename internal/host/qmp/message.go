package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// message is any line of the emulator: exactly one of QMP, Event, or ID with
// Return or Error is set. Unknown members are ignored, as the protocol asks.
type message struct {
	QMP   *greeting       `json:"QMP"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
	ID    *uint64         `json:"id"`
	// Return is kept raw: its type depends on the command.
	Return    json.RawMessage `json:"return"`
	Error     *refusal        `json:"error"`
	Timestamp timestamp       `json:"timestamp"`
}

type greeting struct {
	Version struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
			Micro int `json:"micro"`
		} `json:"qemu"`
		Package string `json:"package"`
	} `json:"version"`
}

func (g *greeting) version() Version {
	q := g.Version.QEMU
	return Version{Major: q.Major, Minor: q.Minor, Micro: q.Micro, Package: g.Version.Package}
}

type refusal struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

type timestamp struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

func (t timestamp) time() time.Time {
	return time.Unix(t.Seconds, 0).Add(time.Duration(t.Microseconds) * time.Microsecond)
}

// readMessage reads one line of at most maxMessage bytes.
func readMessage(in *bufio.Reader) (*message, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) > maxMessage {
			return nil, fmt.Errorf("a message exceeds %d bytes", maxMessage)
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
	return parseMessage(line)
}

func parseMessage(line []byte) (*message, error) {
	var m message
	if err := json.Unmarshal(bytes.TrimSpace(line), &m); err != nil {
		return nil, fmt.Errorf("a message is not as the protocol defines it: %w", err)
	}
	kinds := 0
	for _, is := range []bool{m.QMP != nil, m.Event != "", m.Return != nil, m.Error != nil} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, errors.New("a message is not exactly one of greeting, event, reply and error")
	}
	return &m, nil
}
