package mapper

import (
	"encoding/binary"
	"strings"
	"testing"
)

// The layout is the kernel's: struct dm_target_spec, its parameters with a final
// NUL, padding to eight bytes, and the distance to the next one.
func TestTable(t *testing.T) {
	t.Parallel()
	raw, err := table([]Target{
		{Start: 0, Length: 8, Type: "linear", Params: []byte("1:0 0")},
		{Start: 8, Length: 1 << 40, Type: "linear", Params: []byte("254:16 32776")},
	})
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	for _, want := range []struct {
		start, length uint64
		params        string
	}{{0, 8, "1:0 0"}, {8, 1 << 40, "254:16 32776"}} {
		next := int(le.Uint32(raw[20:]))
		params := string(raw[specSize:next])
		if le.Uint64(raw) != want.start || le.Uint64(raw[8:]) != want.length || string(raw[24:31]) != "linear\x00" || next%8 != 0 ||
			!strings.HasPrefix(params, want.params+"\x00") || strings.Trim(params, "\x00") != want.params {
			t.Errorf("got %q, want %+v", raw[:next], want)
		}
		raw = raw[next:]
	}
	if len(raw) != 0 {
		t.Errorf("%d bytes too many", len(raw))
	}
	if _, err := table([]Target{{Type: strings.Repeat("x", 16)}}); err == nil {
		t.Error("a target's name of 16 characters")
	}
	if _, err := table([]Target{{Type: "crypt", Params: make([]byte, maxTable)}}); err == nil {
		t.Error("a table without bound")
	}
}

func TestDevice(t *testing.T) {
	t.Parallel()
	d := Device{Name: "coffer-scratch", Major: 253, Minor: 2}
	if d.Path() != "/dev/dm-2" || d.Number() != "253:2" {
		t.Errorf("got %s, %s", d.Path(), d.Number())
	}
	c := &Control{}
	if _, err := c.call(cmdCreate, strings.Repeat("n", nameSize), 0, nil); err == nil {
		t.Error("a name without bound")
	}
}
