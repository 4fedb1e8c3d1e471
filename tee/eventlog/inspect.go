package eventlog

import (
	"encoding/hex"
	"fmt"
	"strconv"
)

// Inspection is a log for a reader, decoded and compared with nothing.
type Inspection struct {
	Kind       Kind     `json:"kind"`
	Algorithms []string `json:"algorithms"`
	// Events have the members of [Log.Claims], and: number (from 0), type (number),
	// problem (why the data is not understood), and in details also tag, base,
	// length, disk, partitions, startup_locality and the texts of types that claims
	// leave out.
	Events []map[string]any `json:"events"`
	// Registers are algorithm → register → value in hex, as the log replays to.
	Registers map[string]map[string]string `json:"registers"`
	// Boot has the members of [Boot.Claims], of the strongest algorithm.
	Boot map[string]any `json:"boot"`
	// Odd are remarks.
	Odd []string `json:"odd,omitempty"`
}

// Inspect describes the log.
func (l *Log) Inspect() *Inspection {
	in := &Inspection{Kind: l.Kind, Events: make([]map[string]any, len(l.Events)), Registers: map[string]map[string]string{}, Boot: map[string]any{}}
	for i := range l.Events {
		in.Events[i] = l.inspectEvent(i)
	}
	if l.Legacy {
		in.Odd = append(in.Odd, "the log has the form of TPM 1.2, with SHA-1 alone")
	}
	for _, a := range l.Algorithms {
		in.Algorithms = append(in.Algorithms, a.String())
		values, err := l.Replay(a)
		if err != nil {
			in.Odd = append(in.Odd, fmt.Sprintf("no registers of %s: %v", a, err))
			continue
		}
		bank := map[string]string{}
		for r, v := range values {
			bank[strconv.Itoa(r)] = hex.EncodeToString(v)
		}
		in.Registers[a.String()] = bank
		in.Boot = l.Boot(a).Claims()
	}
	return in
}

func (l *Log) inspectEvent(i int) map[string]any {
	e := &l.Events[i]
	out := l.claim(e)
	out["number"], out["type"] = i, uint32(e.Type)
	d, err := e.Details()
	if err != nil {
		out["problem"] = err.Error()
	}
	more, ok := out["details"].(map[string]any)
	if !ok {
		return out
	}
	if d.Text != nil {
		more["string"] = *d.Text
	}
	if d.DevicePaths != nil {
		more["device_paths"] = d.DevicePaths
	}
	if d.Tag != nil {
		more["tag"] = *d.Tag
	}
	if d.Blob != nil {
		more["base"], more["length"] = d.Blob.Base, d.Blob.Length
	}
	if g := d.GPT; g != nil {
		more["disk"] = g.Disk.String()
		partitions := make([]any, len(g.Partitions))
		for i, p := range g.Partitions {
			partitions[i] = map[string]any{"type": p.Type.String(), "id": p.ID.String(), "first": p.First, "last": p.Last, "name": p.Name}
		}
		more["partitions"] = partitions
	}
	if e.Type == NoAction {
		if at, ok := localityOf(e.Data); ok {
			more["startup_locality"] = int(at)
		} else {
			more["string"] = printable(e.Data)
		}
	}
	return out
}

// printable is the text that begins informative events.
func printable(data []byte) string {
	s := firstText(data[:min(len(data), 64)])
	for _, r := range s {
		if r < ' ' || r > '~' {
			return ""
		}
	}
	return s
}
