package eventlog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/jsonscan"
)

// Numbers of tagged events.
const (
	// aaelTag reads "LEAA" in the log (guest-components, attestation-agent/docs).
	aaelTag = 0x4141454c
	// linuxInitrdTag and linuxOptionsTag are of the EFI stub of Linux
	// (linux 6.12, drivers/firmware/efi/libstub/efistub.h).
	linuxInitrdTag  = 0x8f3b22ec
	linuxOptionsTag = 0x8f3b22ed
	// maxContentDepth is how deep content in JSON may be nested.
	maxContentDepth = 32
)

// RuntimeEvent is an entry of an attestation agent: what happened in the guest
// after it was started.
type RuntimeEvent struct {
	Domain    string
	Operation string
	Content   string
}

// NewRuntimeEvent refuses what cannot be written: a space in domain or operation,
// a line break or a zero anywhere, text that is not UTF-8.
func NewRuntimeEvent(domain, operation, content string) (RuntimeEvent, error) {
	r := RuntimeEvent{domain, operation, content}
	for _, part := range []struct{ name, value, bad string }{
		{"domain", domain, " \n\r\x00"}, {"operation", operation, " \n\r\x00"}, {"content", content, "\n\r\x00"},
	} {
		if i := strings.IndexAny(part.value, part.bad); i >= 0 {
			return r, fmt.Errorf("eventlog: %s: %q is not allowed", part.name, part.value[i])
		}
		if !utf8.ValidString(part.value) {
			return r, fmt.Errorf("eventlog: %s: is not UTF-8", part.name)
		}
	}
	if domain == "" || operation == "" {
		return r, errors.New("eventlog: domain and operation: expected text, got none")
	}
	return r, nil
}

// String is "domain operation content".
func (r RuntimeEvent) String() string { return r.Domain + " " + r.Operation + " " + r.Content }

// ContentValue is the content as a JSON value where it is JSON without a name
// twice, as a string otherwise.
func (r RuntimeEvent) ContentValue() any {
	if !jsonscan.Plain([]byte(r.Content), maxContentDepth) {
		return r.Content
	}
	dec := json.NewDecoder(strings.NewReader(r.Content))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return r.Content
	}
	return v
}

// Data is the data of the event of type [EventTag]: number, length of the text, text. Its
// digest is what is measured.
func (r RuntimeEvent) Data() []byte {
	s := r.String()
	b := binary.LittleEndian.AppendUint32(nil, aaelTag)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// taggedEvent reads TCG_PCClientTaggedEvent (Platform Firmware Profile 1.06,
// section 10.2.8): number, length of the data, data.
func taggedEvent(data []byte) (Details, error) {
	if len(data) < 8 {
		return Details{}, errShort
	}
	tag, length := binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:])
	if uint64(length) > uint64(len(data)-8) {
		return Details{}, fmt.Errorf("length of tagged data: expected at most %d, got %d", len(data)-8, length)
	}
	body := data[8 : 8+length]
	d := textOf(strings.ReplaceAll(string([]rune(string(body))), "\x00", ""))
	d.Tag = &tag
	if tag != aaelTag {
		return d, nil
	}
	domain, rest, one := strings.Cut(string(body), " ")
	operation, content, two := strings.Cut(rest, " ")
	if !one || !two || !utf8.Valid(body) || int(length) != len(data)-8 {
		return Details{}, errors.New("runtime event: expected domain, operation and content")
	}
	d.Runtime = &RuntimeEvent{domain, operation, content}
	return d, nil
}

// isAAEL reports whether an event has the tag of runtime events.
func isAAEL(e *Event) bool {
	return e.Type == EventTag && len(e.Data) >= 8 && binary.LittleEndian.Uint32(e.Data) == aaelTag
}

// looksLikeAAEL reports whether bytes begin with a runtime event and no header.
func looksLikeAAEL(raw []byte) bool {
	if len(raw) < 14 || binary.LittleEndian.Uint32(raw[4:]) != uint32(EventTag) || binary.LittleEndian.Uint32(raw[8:]) != 1 {
		return false
	}
	at := 14 + Alg(binary.LittleEndian.Uint16(raw[12:])).Size()
	return at > 14 && len(raw) >= at+8 && binary.LittleEndian.Uint32(raw[at+4:]) == aaelTag
}
