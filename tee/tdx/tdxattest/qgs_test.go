package tdxattest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// service answers one request with a message that make builds of the report.
func service(t *testing.T, answer func(tdreport []byte) []byte) Dial {
	t.Helper()
	return func(context.Context) (net.Conn, error) {
		guest, host := net.Pipe()
		go func() {
			defer func() { _ = host.Close() }()
			var prefix [4]byte
			if _, err := io.ReadFull(host, prefix[:]); err != nil {
				return
			}
			m := make([]byte, binary.BigEndian.Uint32(prefix[:]))
			if _, err := io.ReadFull(host, m); err != nil {
				return
			}
			le := binary.LittleEndian
			if le.Uint16(m) != 1 || le.Uint32(m[4:]) != 0 || le.Uint32(m[8:]) != uint32(len(m)) || le.Uint32(m[16:]) != tdreportSize || le.Uint32(m[20:]) != 0 || len(m) != 24+tdreportSize {
				t.Errorf("malformed request % x", m[:24])
			}
			_, _ = host.Write(answer(m[24:]))
		}()
		return guest, nil
	}
}

// response builds an answer field by field.
func response(major uint16, kind, size, code, id, quote uint32, body []byte) []byte {
	le := binary.LittleEndian
	m := le.AppendUint16(nil, major)
	m = le.AppendUint16(m, 0)
	for _, v := range []uint32{kind, size, code, id, quote} {
		m = le.AppendUint32(m, v)
	}
	m = append(m, body...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(m))), m...)
}

func TestService(t *testing.T) {
	report := bytes.Repeat([]byte{7}, tdreportSize)
	for name, id := range map[string][]byte{"no id": nil, "an id": []byte("0123456789abcdef")} {
		got, err := quoteFromService(t.Context(), service(t, func(got []byte) []byte {
			if !bytes.Equal(got, report) {
				t.Error("another report arrived")
			}
			return response(1, 1, uint32(24+len(id)+5), 0, uint32(len(id)), 5, append(bytes.Clone(id), "quote"...))
		}), report)
		if err != nil || string(got) != "quote" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestServiceLies(t *testing.T) {
	for name, tc := range map[string]struct {
		answer []byte
		want   string
	}{
		"nothing":        {nil, "EOF"},
		"length zero":    {make([]byte, 4), "message length"},
		"length huge":    {[]byte{0xff, 0xff, 0xff, 0xff}, "message length"},
		"cut":            {response(1, 1, 29, 0, 0, 5, []byte("quote"))[:20], "EOF"},
		"major":          {response(2, 1, 29, 0, 0, 5, []byte("quote")), "major version"},
		"type":           {response(1, 3, 29, 0, 0, 5, []byte("quote")), "message type"},
		"error":          {response(1, 1, 29, 0x12001, 0, 5, []byte("quote")), "error 0x12001"},
		"size":           {response(1, 1, 28, 0, 0, 5, []byte("quote")), "size: expected 29"},
		"empty quote":    {response(1, 1, 24, 0, 0, 0, nil), "id and quote"},
		"quote beyond":   {response(1, 1, 29, 0, 0, 6, []byte("quote")), "id and quote"},
		"id wraps round": {response(1, 1, 29, 0, 0xffffffff, 6, []byte("quote")), "id and quote"},
		"header alone":   {append([]byte{0, 0, 0, 16}, response(1, 1, 16, 0, 0, 0, nil)[4:20]...), "sizes of a quote"},
	} {
		if got, err := quoteFromService(t.Context(), service(t, func([]byte) []byte { return tc.answer }), make([]byte, tdreportSize)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	broken := errors.New("no such port")
	if _, err := quoteFromService(t.Context(), func(context.Context) (net.Conn, error) { return nil, broken }, nil); !errors.Is(err, broken) {
		t.Error(err)
	}
}

// A service that says nothing keeps nobody waiting for ever.
func TestServiceIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := quoteFromService(t.Context(), func(context.Context) (net.Conn, error) {
			guest, host := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, host) }()
			return guest, nil
		}, make([]byte, tdreportSize))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != quoteTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func FuzzResponse(f *testing.F) {
	f.Add(response(1, 1, 29, 0, 0, 5, []byte("quote"))[4:])
	f.Fuzz(func(t *testing.T, m []byte) {
		if q, err := qgsResponse(m); err == nil && (len(q) == 0 || len(q) > len(m)) {
			t.Error("a quote of no size")
		}
	})
}
