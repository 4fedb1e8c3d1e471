// Package conffile edits containerd's main configuration file as little as can
// be: it adds one import, and takes exactly that away again. Everything else in
// the file, comments and layout included, stays byte for byte.
//
// containerd does not read a drop-in that the main file does not import: its
// default import pattern is only used in what `containerd config default`
// prints (cmd/containerd/server/config.LoadConfig of containerd 1.6 to 2.4
// resolves the imports of the files it reads). So one import there must be.
package conffile

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/coffer-project/coffer/internal/boundedtoml"
)

// MaxBytes bounds a configuration file.
const MaxBytes = 4 << 20

// marker ends a line that Add wrote as a whole.
const marker = "# written by coffer install; coffer uninstall removes it"

// Main is what matters of a main configuration file.
type Main struct {
	// Version as the file says; 0 where it says nothing.
	Version int
	// Imports are the patterns of the file.
	Imports []string
	// Disabled are the plugins that it turns off.
	Disabled []string
	// Plugins is the table of that name.
	Plugins map[string]any
}

// Parse reads a file.
func Parse(data []byte) (*Main, error) {
	doc, err := boundedtoml.Decode(data, MaxBytes)
	if err != nil {
		return nil, err
	}
	m := &Main{}
	if v, ok := doc["version"]; ok {
		n, isInt := v.(int64)
		if !isInt || n < 0 || n > 100 {
			return nil, fmt.Errorf("version: expected a number, got %v", v)
		}
		m.Version = int(n)
	}
	if m.Imports, err = texts(doc, "imports"); err != nil {
		return nil, err
	}
	if m.Disabled, err = texts(doc, "disabled_plugins"); err != nil {
		return nil, err
	}
	if v, ok := doc["plugins"]; ok {
		if m.Plugins, ok = v.(map[string]any); !ok {
			return nil, errors.New("plugins: expected a table")
		}
	}
	return m, nil
}

func texts(doc map[string]any, key string) ([]string, error) {
	v, ok := doc[key]
	if !ok {
		return nil, nil
	}
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("%s: expected a list of texts", key)
	}
	var out []string
	for i, e := range list {
		s, ok := e.(string)
		if !ok {
			return nil, fmt.Errorf("%s[%d]: expected a text, got %v", key, i, e)
		}
		out = append(out, s)
	}
	return out, nil
}

// Importing returns the first of the file's patterns that matches path, and
// "" where none does. dir is the main file's directory, from which relative
// patterns count.
func (m *Main) Importing(dir, path string) string {
	for _, p := range m.Imports {
		full := filepath.Clean(p)
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		if ok, err := filepath.Match(full, path); err == nil && ok {
			return p
		}
	}
	return ""
}

// Add returns the file with pattern among its imports: at the end of the list
// that is there, or in a line of its own at the top. A file that imports the
// pattern already is returned as it is.
func Add(data []byte, pattern string) ([]byte, error) {
	m, err := Parse(data)
	if err != nil {
		return nil, err
	}
	if slices.Contains(m.Imports, pattern) {
		return data, nil
	}
	element := strconv.Quote(pattern)
	list, ok := find(data)
	if !ok {
		if m.Imports != nil {
			return nil, errors.New("imports: the list is written in a way that this program does not edit; add the import by hand: " + element)
		}
		return checked(slices.Concat([]byte("imports = ["+element+"] "+marker+"\n"), data), append(m.Imports, pattern))
	}
	insert := ", " + element
	switch {
	case list.last == list.open: // an empty list
		insert = element
	case data[list.last-1] == ',':
		insert = " " + element + ","
	}
	return checked(slices.Concat(data[:list.last], []byte(insert), data[list.last:]), append(m.Imports, pattern))
}

// Remove is the inverse of Add, whatever else has been changed in the file
// meanwhile. A file without the pattern is returned as it is.
func Remove(data []byte, pattern string) ([]byte, error) {
	m, err := Parse(data)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(m.Imports, pattern) {
		return data, nil
	}
	element := []byte(strconv.Quote(pattern))
	list, ok := find(data)
	at := -1
	if ok {
		at = bytes.Index(data[list.open:list.end], element)
	}
	if at < 0 {
		return nil, fmt.Errorf("imports: %s is there, but not as it was written; remove it by hand", element)
	}
	from := list.open + at
	to := from + len(element)
	rest := m.Imports
	rest = slices.DeleteFunc(slices.Clone(rest), func(s string) bool { return s == pattern })
	if start, end := line(data, from); len(rest) == 0 && bytes.HasSuffix(bytes.TrimRight(data[start:end], "\r\n"), []byte(marker)) {
		return checked(slices.Concat(data[:start], data[end:]), nil)
	}
	switch {
	case to < len(data) && data[to] == ',':
		to++
		if from > 0 && data[from-1] == ' ' {
			from--
		} else if to < len(data) && data[to] == ' ' {
			to++
		}
	default:
		if head := bytes.TrimRight(data[list.open:from], " \t\r\n"); bytes.HasSuffix(head, []byte(",")) {
			from = list.open + len(head) - 1
		}
	}
	return checked(slices.Concat(data[:from], data[to:]), rest)
}

// checked returns text if it has the imports that it should have.
func checked(text []byte, imports []string) ([]byte, error) {
	m, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("the edit would break the file, which is left as it was: %w", err)
	}
	if !slices.Equal(m.Imports, imports) {
		return nil, fmt.Errorf("the edit would give imports %q instead of %q; the file is left as it was: edit it by hand", m.Imports, imports)
	}
	return text, nil
}

// line is where the line around a position begins and ends, its end included.
func line(data []byte, at int) (start, end int) {
	start = bytes.LastIndexByte(data[:at], '\n') + 1
	if n := bytes.IndexByte(data[at:], '\n'); n >= 0 {
		return start, at + n + 1
	}
	return start, len(data)
}
