package numbers

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, data := range [][]byte{{}, {0}, all} {
		got, err := Parse(Append(nil, data), len(data))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: got %x, %v", len(data), got, err)
		}
	}
	if got, err := Parse([]byte(" [ 1 ,\n2 ] "), 2); err != nil || !bytes.Equal(got, []byte{1, 2}) {
		t.Errorf("spaces: got %x, %v", got, err)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`"AQI="`: "array", `null`: "array", `{}`: "array", `[256]`: "[0]", `[-1]`: "[0]", `[1,1.0]`: "[1]", `[1e1]`: "[0]",
		`[1,"2"]`: "[1]", `[[1]]`: "[0]", `[01]`: "[0]", `[1,2,3,4]`: "at most 3", `[1,]`: "[1]", `[1000]`: "[0]",
	} {
		if got, err := Parse([]byte(in), 3); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %x, %v; want an error with %q", in, got, err, want)
		}
	}
}

func TestBytes(t *testing.T) {
	t.Parallel()
	var v struct {
		B Bytes `json:"b"`
	}
	if err := json.Unmarshal([]byte(`{"b":[1,2]}`), &v); err != nil || !bytes.Equal(v.B, []byte{1, 2}) {
		t.Errorf("got %x, %v", v.B, err)
	}
	if out, err := json.Marshal(v); err != nil || string(out) != `{"b":[1,2]}` {
		t.Errorf("got %s, %v", out, err)
	}
	for _, in := range []string{`{"b":null}`, `{"b":"AQI="}`, `{"b":[256]}`} {
		if err := json.Unmarshal([]byte(in), &v); err == nil {
			t.Errorf("%s: accepted", in)
		}
	}
}
