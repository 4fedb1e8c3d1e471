package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// table prints v as JSON, or rows below a header.
func (a *app) table(v any, header string, rows func(io.Writer)) error {
	if a.json() {
		return a.printJSON(v)
	}
	w := tabwriter.NewWriter(a.env.Stdout, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, header)
	rows(w)
	return w.Flush()
}

// done prints v as JSON, or a line of text, or nothing for an empty one.
func (a *app) done(v any, format string, args ...any) error {
	if a.json() {
		return a.printJSON(v)
	}
	if format != "" {
		a.printf(format+"\n", args...)
	}
	return nil
}

// row writes the cells of a table.
func row(w io.Writer, cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		text[i] = clean(fmt.Sprint(c))
	}
	_, _ = fmt.Fprintln(w, strings.Join(text, "\t"))
}

// clean makes text of somebody else fit for a terminal: on one line, and
// without control sequences.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
}

// cleanLines is clean for text of several lines.
func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = clean(l)
	}
	return strings.Join(lines, "\n")
}

// escapeControls escapes what is not printable in a JSON text, where it can only
// stand in strings.
func escapeControls(text []byte) []byte {
	bad := func(r rune) bool { return r >= 0x7f && !unicode.IsPrint(r) }
	if bytes.IndexFunc(text, bad) < 0 {
		return text
	}
	var out []byte
	for _, r := range string(text) {
		switch {
		case !bad(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}

// stamp is a time, "-" for none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// count is a number of things.
func count(n int64, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return strconv.FormatInt(n, 10) + " " + thing
}

// compact is v as JSON on one line.
func compact(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// readLimited reads a file, or standard input for "-", of at most limit bytes.
func (a *app) readLimited(path string, limit int64) ([]byte, error) {
	if path != "-" {
		return readSmall(path, limit)
	}
	data, err := io.ReadAll(io.LimitReader(a.env.Stdin, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return data, err
}

// writeFile writes a file of mode 0600 that is whole or not there. Only with
// replace may there be one already.
func writeFile(path string, replace bool, write func(io.Writer) error) error {
	exists := usagef("%s: exists already", path)
	if _, err := os.Lstat(path); err == nil && !replace {
		return exists
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return usagef("%s: %w", path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if replace {
		return os.Rename(f.Name(), path)
	}
	// A link fails where a file has come up meanwhile; a rename would not.
	if err := os.Link(f.Name(), path); os.IsExist(err) {
		return exists
	} else if err != nil {
		return err
	}
	return nil
}
