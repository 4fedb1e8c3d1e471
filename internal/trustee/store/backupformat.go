package store

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// A backup is gzip (RFC 1952, one member) of JSON lines, in UTF-8:
//
//	{"backup":{"format":"coffer-trustee-backup","version":1,"schema":3,"kek":"file:…","created":"…"}}
//	{"table":{"name":"tenants","columns":[{"name":"name","kind":"text"},…]}}
//	["default",…]
//	…
//	{"end":{"rows":{"tenants":1,…},"sha256":"…","seal":"…"}}
//
// A row has a string or null for every column of the table before it: text as
// it is, numbers in decimal, bytes in standard base64. sha256 covers every byte
// up to the line of the end, and seal is that digest sealed under a data key of
// the database: who holds no key-encryption key cannot make a backup that is
// accepted, nor change one.
const (
	backupFormat  = "coffer-trustee-backup"
	backupVersion = 1
	// backupSeal is the name that the digest is sealed with.
	backupSeal = "backup/v1"
	// maxBackupLine holds the largest content in base64, with its row.
	maxBackupLine = MaxContent/3*4 + 1<<20
	maxColumns    = 64
)

type backupHeader struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Schema  int       `json:"schema"`
	KEK     string    `json:"kek"`
	Created time.Time `json:"created"`
}

// Kinds of column.
const (
	kindText  = "text"
	kindInt   = "int"
	kindBytes = "bytes"
)

type backupColumn struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
}

type backupTable struct {
	Name    string         `json:"name"`
	Columns []backupColumn `json:"columns"`
}

type backupEnd struct {
	Rows   map[string]int64 `json:"rows"`
	SHA256 string           `json:"sha256"`
	// Seal is base64 of the sealed digest.
	Seal []byte `json:"seal"`
}

type backupLine struct {
	Backup *backupHeader `json:"backup,omitempty"`
	Table  *backupTable  `json:"table,omitempty"`
	End    *backupEnd    `json:"end,omitempty"`
}

// backupWriter writes the lines and keeps the digest.
type backupWriter struct {
	gz   *gzip.Writer
	buf  *bufio.Writer
	sum  hash.Hash
	end  backupEnd
	last *backupTable
}

func newBackupWriter(w io.Writer, h backupHeader) (*backupWriter, error) {
	b := &backupWriter{gz: gzip.NewWriter(w), sum: sha256.New(), end: backupEnd{Rows: map[string]int64{}}}
	b.buf = bufio.NewWriterSize(io.MultiWriter(b.gz, b.sum), 64<<10)
	return b, b.line(backupLine{Backup: &h})
}

func (b *backupWriter) line(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > maxBackupLine {
		return fmt.Errorf("backup: expected a line of at most %d bytes, got %d", maxBackupLine, len(data))
	}
	_, err = b.buf.Write(append(data, '\n'))
	return err
}

func (b *backupWriter) table(t backupTable) error {
	b.last = &t
	b.end.Rows[t.Name] = 0
	return b.line(backupLine{Table: &t})
}

// row writes what a driver has scanned for the last table's columns.
func (b *backupWriter) row(values []any) error {
	out := make([]*string, len(values))
	for i, v := range values {
		s, err := encodeColumn(b.last.Columns[i].Kind, v)
		if err != nil {
			return fmt.Errorf("backup: %s.%s: %w", b.last.Name, b.last.Columns[i].Name, err)
		}
		out[i] = s
	}
	b.end.Rows[b.last.Name]++
	return b.line(out)
}

// finish writes the end with the digest, sealed by seal.
func (b *backupWriter) finish(seal func([]byte) ([]byte, error)) error {
	if err := b.buf.Flush(); err != nil {
		return err
	}
	digest := b.sum.Sum(nil)
	b.end.SHA256 = hex.EncodeToString(digest)
	var err error
	if b.end.Seal, err = seal(digest); err != nil {
		return err
	}
	return errors.Join(b.line(backupLine{End: &b.end}), b.buf.Flush(), b.gz.Close())
}

func encodeColumn(kind string, v any) (*string, error) {
	var s string
	switch v := v.(type) {
	case nil:
		return nil, nil
	case int64:
		if kind != kindInt {
			return nil, fmt.Errorf("expected %s, got a number", kind)
		}
		s = strconv.FormatInt(v, 10)
	case string:
		return encodeColumn(kind, []byte(v))
	case []byte:
		switch kind {
		case kindBytes:
			s = base64.StdEncoding.EncodeToString(v)
		case kindText:
			// JSON would replace what is not UTF-8: better no backup than one that
			// restores to something else.
			if !utf8.Valid(v) {
				return nil, errors.New("expected UTF-8")
			}
			s = string(v)
		default:
			return nil, fmt.Errorf("expected %s, got bytes", kind)
		}
	default:
		return nil, fmt.Errorf("expected %s, got %T", kind, v)
	}
	return &s, nil
}

func decodeColumn(kind string, s *string) (any, error) {
	if s == nil {
		return nil, nil
	}
	switch kind {
	case kindInt:
		n, err := strconv.ParseInt(*s, 10, 64)
		if err != nil || strconv.FormatInt(n, 10) != *s {
			return nil, errors.New("expected a decimal number")
		}
		return n, nil
	case kindBytes:
		b, err := base64.StdEncoding.Strict().DecodeString(*s)
		if err != nil {
			return nil, errors.New("expected standard base64")
		}
		return b, nil
	}
	return *s, nil
}

// errBackup is what every refusal of a backup file wraps.
var errBackup = errors.New("the backup is cut off or altered")

// backupReader reads a backup. It hands out rows before it can know whether
// the file is whole: nothing may be kept before end has returned without error.
type backupReader struct {
	src    *bufio.Reader
	gz     *gzip.Reader
	lines  *bufio.Reader
	sum    hash.Hash
	number int
	header backupHeader
}

func newBackupReader(r io.Reader) (*backupReader, error) {
	b := &backupReader{src: bufio.NewReader(r), sum: sha256.New()}
	var err error
	if b.gz, err = gzip.NewReader(b.src); err != nil {
		return nil, fmt.Errorf("backup: expected a gzip file: %w", err)
	}
	b.gz.Multistream(false)
	b.lines = bufio.NewReaderSize(b.gz, 64<<10)
	raw, err := b.read()
	if err != nil {
		return nil, err
	}
	var l backupLine
	if err := decodeLine(raw, &l); err != nil || l.Backup == nil || l.Table != nil || l.End != nil {
		return nil, errors.Join(errors.New("backup: line 1: expected the header of a backup"), err)
	}
	b.header = *l.Backup
	if b.header.Format != backupFormat || b.header.Version != backupVersion {
		return nil, fmt.Errorf("backup: format: expected %s version %d, got %.64q version %d", backupFormat, backupVersion, b.header.Format, b.header.Version)
	}
	return b, b.hash(raw)
}

func decodeLine(raw []byte, v any) error {
	return strictjson.Decode(raw, v, strictjson.Limits{Bytes: maxBackupLine, Depth: 6})
}

// read returns the next line without its newline.
func (b *backupReader) read() ([]byte, error) {
	b.number++
	var line []byte
	for {
		part, err := b.lines.ReadSlice('\n')
		if len(line)+len(part) > maxBackupLine {
			return nil, b.fail("expected at most %d bytes", maxBackupLine)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, b.fail("expected a whole line: %w", err)
		}
	}
}

func (b *backupReader) fail(format string, args ...any) error {
	return fmt.Errorf("backup: line %d: %w: %w", b.number, errBackup, fmt.Errorf(format, args...))
}

func (b *backupReader) hash(raw []byte) error {
	_, err := b.sum.Write(raw)
	if err == nil {
		_, err = b.sum.Write([]byte{'\n'})
	}
	return err
}

// each calls table and row for what the file holds, then verify with the
// digest and what claims to be it, sealed.
func (b *backupReader) each(table func(backupTable) error, row func([]any) error, verify func(digest, sealed []byte) error) error {
	var t *backupTable
	rows := map[string]int64{}
	for {
		raw, err := b.read()
		if err != nil {
			return err
		}
		if len(raw) > 0 && raw[0] == '[' {
			values, err := b.row(t, raw)
			if err != nil {
				return err
			}
			rows[t.Name]++
			if err := errors.Join(b.hash(raw), row(values)); err != nil {
				return err
			}
			continue
		}
		var l backupLine
		if err := decodeLine(raw, &l); err != nil {
			return b.fail("%w", err)
		}
		switch {
		case l.Backup == nil && l.Table != nil && l.End == nil:
			t = l.Table
			if _, twice := rows[t.Name]; twice || len(t.Columns) == 0 || len(t.Columns) > maxColumns {
				return b.fail("table %.64q: expected each table once, with 1 to %d columns", t.Name, maxColumns)
			}
			rows[t.Name] = 0
			if err := errors.Join(b.hash(raw), table(*t)); err != nil {
				return err
			}
		case l.Backup == nil && l.Table == nil && l.End != nil:
			return b.end(*l.End, rows, verify)
		default:
			return b.fail("expected a table, a row or the end")
		}
	}
}

func (b *backupReader) row(t *backupTable, raw []byte) ([]any, error) {
	if t == nil {
		return nil, b.fail("a row before any table")
	}
	var fields []*string
	if err := decodeLine(raw, &fields); err != nil {
		return nil, b.fail("%w", err)
	}
	if len(fields) != len(t.Columns) {
		return nil, b.fail("table %.64s: expected %d columns, got %d", t.Name, len(t.Columns), len(fields))
	}
	values := make([]any, len(fields))
	for i, f := range fields {
		v, err := decodeColumn(t.Columns[i].Kind, f)
		if err != nil {
			return nil, b.fail("table %.64s: column %.64s: %w", t.Name, t.Columns[i].Name, err)
		}
		values[i] = v
	}
	return values, nil
}

func (b *backupReader) end(e backupEnd, rows map[string]int64, verify func(digest, sealed []byte) error) error {
	// Reading to the end has gzip check its own sum and length.
	if _, err := b.lines.ReadByte(); !errors.Is(err, io.EOF) {
		return b.fail("expected nothing after the end: %w", cmp.Or(err, errors.New("got more")))
	}
	if _, err := b.src.Peek(1); !errors.Is(err, io.EOF) {
		return b.fail("expected nothing after the compressed file")
	}
	digest := b.sum.Sum(nil)
	if want := hex.EncodeToString(digest); e.SHA256 != want {
		return b.fail("sha256: expected %s, got %.64q", want, e.SHA256)
	}
	if len(e.Rows) != len(rows) {
		return b.fail("rows: expected %d tables, got %d", len(rows), len(e.Rows))
	}
	for name, n := range rows {
		if e.Rows[name] != n {
			return b.fail("table %.64s: expected %d rows, got %d", name, e.Rows[name], n)
		}
	}
	if err := verify(bytes.Clone(digest), e.Seal); err != nil {
		return b.fail("%w", err)
	}
	return nil
}
