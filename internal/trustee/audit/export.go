package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// ExportFormat names the format of exports: JSON lines, each an object of one
// member. The first is "header", then one "checkpoint" for each, one "entry"
// for each, oldest first, and "trailer" with their numbers.
const ExportFormat = "coffer-audit-export/v1"

// Limits of an export. What stands around a record in its line is small.
const (
	maxLine        = MaxBody + 4<<10
	maxCheckpoints = 4 << 20
)

// ExportHeader begins an export.
type ExportHeader struct {
	Format  string      `json:"format"`
	Tenant  tenant.Name `json:"tenant"`
	Created time.Time   `json:"created"`
	// Keys are the trustee's, as it says itself. Who verifies against them
	// verifies against the trustee's own word.
	Keys json.RawMessage `json:"keys"`
}

type exportTrailer struct {
	Entries     int64 `json:"entries"`
	Checkpoints int64 `json:"checkpoints"`
}

type exportLine struct {
	Header     *ExportHeader  `json:"header,omitempty"`
	Checkpoint string         `json:"checkpoint,omitempty"`
	Entry      *Entry         `json:"entry,omitempty"`
	Trailer    *exportTrailer `json:"trailer,omitempty"`
}

// WriteExport writes a chain so that it can be verified without the trustee.
func WriteExport(w io.Writer, t tenant.Name, created time.Time, keys Keys, checkpoints []string, entries iter.Seq2[Entry, error]) error {
	b := bufio.NewWriter(w)
	line := func(l exportLine) error {
		doc, err := json.Marshal(l)
		if err != nil {
			return err
		}
		if l.Entry != nil && !bytes.Contains(doc, l.Entry.Body) {
			return fmt.Errorf("audit export: entry %d: the record is not compact JSON, its hash would be lost", l.Entry.Seq)
		}
		if len(doc) > maxLine {
			return fmt.Errorf("audit export: a line has %d bytes, at most %d are allowed", len(doc), maxLine)
		}
		_, err = b.Write(append(doc, '\n'))
		return err
	}
	set, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	if err := line(exportLine{Header: &ExportHeader{ExportFormat, t, created.UTC().Truncate(time.Second), set}}); err != nil {
		return err
	}
	for _, c := range checkpoints {
		if err := line(exportLine{Checkpoint: c}); err != nil {
			return err
		}
	}
	trailer := exportTrailer{Checkpoints: int64(len(checkpoints))}
	for e, err := range entries {
		if err != nil {
			return fmt.Errorf("audit export: %w", err)
		}
		if err := line(exportLine{Entry: &e}); err != nil {
			return err
		}
		trailer.Entries++
	}
	if err := line(exportLine{Trailer: &trailer}); err != nil {
		return err
	}
	return b.Flush()
}

// Export is an export that is being read.
type Export struct {
	Header      ExportHeader
	Keys        Keys
	Checkpoints []string

	lines *bufio.Scanner
	next  *exportLine // read ahead: the first after the checkpoints
	n     int64       // lines read
}

// OpenExport reads an export up to its entries.
func OpenExport(r io.Reader) (*Export, error) {
	x := &Export{lines: bufio.NewScanner(r)}
	x.lines.Buffer(make([]byte, 0, 64<<10), maxLine+1)
	first, err := x.line()
	if err != nil {
		return nil, err
	}
	if first.Header == nil || first.Header.Format != ExportFormat {
		return nil, fmt.Errorf("audit export: line 1: expected a header of format %s", ExportFormat)
	}
	x.Header = *first.Header
	if _, err := tenant.Parse(string(x.Header.Tenant)); err != nil {
		return nil, fmt.Errorf("audit export: header: %w", err)
	}
	if x.Keys, err = ParseKeys(x.Header.Keys); err != nil {
		return nil, fmt.Errorf("audit export: header: %w", err)
	}
	for {
		if x.next, err = x.line(); err != nil {
			return nil, err
		}
		if x.next.Checkpoint == "" {
			return x, nil
		}
		if len(x.Checkpoints) == maxCheckpoints {
			return nil, fmt.Errorf("audit export: expected at most %d checkpoints", maxCheckpoints)
		}
		x.Checkpoints = append(x.Checkpoints, x.next.Checkpoint)
	}
}

// Entries reads the rest. It can be walked once. An export that is cut off ends
// with an error.
func (x *Export) Entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var n int64
		for ; x.next != nil; n++ {
			l := x.next
			if l.Trailer != nil {
				if err := x.end(*l.Trailer, n); err != nil {
					yield(Entry{}, err)
				}
				return
			}
			if l.Entry == nil {
				yield(Entry{}, fmt.Errorf("audit export: line %d: expected an entry or the trailer", x.n))
				return
			}
			if !yield(*l.Entry, nil) {
				return
			}
			var err error
			if x.next, err = x.line(); err != nil {
				yield(Entry{}, err)
				return
			}
		}
		yield(Entry{}, errors.New("audit export: its entries were read before"))
	}
}

func (x *Export) end(t exportTrailer, entries int64) error {
	x.next = nil
	if t.Entries != entries || t.Checkpoints != int64(len(x.Checkpoints)) {
		return fmt.Errorf("audit export: trailer: expected %d entries and %d checkpoints, got %d and %d", t.Entries, t.Checkpoints, entries, len(x.Checkpoints))
	}
	if x.lines.Scan() {
		return fmt.Errorf("audit export: line %d: expected nothing after the trailer", x.n+1)
	}
	return x.lines.Err()
}

func (x *Export) line() (*exportLine, error) {
	x.n++
	if !x.lines.Scan() {
		err := x.lines.Err()
		if err == nil {
			err = fmt.Errorf("is cut off: there is no trailer: %w", io.ErrUnexpectedEOF)
		}
		return nil, fmt.Errorf("audit export: line %d: %w", x.n, err)
	}
	l, err := decodeLine(x.lines.Bytes())
	if err != nil {
		return nil, fmt.Errorf("audit export: line %d: %w", x.n, err)
	}
	return l, nil
}

// decodeLine is strict about the line and takes the record as it is: of the
// document inside it only the hash speaks.
func decodeLine(doc []byte) (*exportLine, error) {
	var l exportLine
	body, rest, found := bytes.Cut(doc, []byte(`,"record":`))
	if found && bytes.HasPrefix(doc, []byte(`{"entry":{`)) {
		record, ok := bytes.CutSuffix(rest, []byte("}}"))
		if !ok || !json.Valid(record) {
			return nil, errors.New("the record is no JSON")
		}
		doc = append(bytes.Clone(body), "}}"...)
		if err := strictjson.Decode(doc, &l, strictjson.Limits{Bytes: maxLine}); err != nil {
			return nil, err
		}
		l.Entry.Body = bytes.Clone(record)
		return &l, nil
	}
	if err := strictjson.Decode(doc, &l, strictjson.Limits{Bytes: maxLine}); err != nil {
		return nil, err
	}
	kinds := 0
	for _, is := range []bool{l.Header != nil, l.Checkpoint != "", l.Trailer != nil} {
		if is {
			kinds++
		}
	}
	if kinds != 1 || l.Entry != nil {
		return nil, errors.New("expected one of header, checkpoint, entry and trailer")
	}
	return &l, nil
}
