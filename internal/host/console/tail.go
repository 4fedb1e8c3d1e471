// Package console keeps the last lines a virtual machine printed.
//
// The bytes come from the guest, which the host has no reason to trust with
// its terminal or its memory: a [Tail] holds a bounded number of bounded
// lines and lets no control character or escape sequence through.
package console

import (
	"strings"
	"sync"
	"unicode/utf8"
)

// Limits of a Tail. A line that is longer is cut and marked with an ellipsis.
const (
	DefaultLines = 60
	maxLineBytes = 1024
)

// Tail is an io.Writer that remembers the last lines written to it. It is
// safe for concurrent use; a Write never fails.
type Tail struct {
	mu     sync.Mutex
	ring   []string // ring[next] is the oldest once full
	next   int
	full   bool
	line   []byte // sanitised bytes of the line being written
	cut    bool   // the line being written has lost its end
	escape escapeState
	onLine func(string)
}

// NewTail returns a Tail of the last n lines (DefaultLines when n < 1).
// onLine, when not nil, is called with every complete line, in order, from
// within Write: it must not block, nor call the Tail.
func NewTail(n int, onLine func(line string)) *Tail {
	if n < 1 {
		n = DefaultLines
	}
	return &Tail{ring: make([]string, n), onLine: onLine}
}

// Write takes console output; it returns len(p), nil.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range p {
		t.put(c)
	}
	return len(p), nil
}

// Lines returns the remembered lines, oldest first. An unfinished last line
// is among them: a machine that hangs often does so in the middle of one.
func (t *Tail) Lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	if t.full {
		lines = append(lines, t.ring[t.next:]...)
	}
	lines = append(lines, t.ring[:t.next]...)
	if len(t.line) > 0 {
		lines = append(lines, t.text())
	}
	return lines
}

// String returns the remembered lines joined by newlines.
func (t *Tail) String() string { return strings.Join(t.Lines(), "\n") }

// panicLine begins what Linux prints of its own end: the reason, then a page
// of registers and calls.
const panicLine = "Kernel panic - not syncing"

// Excerpt returns the n lines of a console that are worth repeating in an
// error: the last ones, or, where Linux panicked, those up to its reason.
func Excerpt(lines []string, n int) []string {
	for i, l := range lines {
		if strings.Contains(l, panicLine) {
			lines = lines[:i+1]
			break
		}
	}
	return lines[max(0, len(lines)-n):]
}

func (t *Tail) put(c byte) {
	if t.escape = t.escape.next(c); t.escape != plain {
		return
	}
	switch {
	case c == '\n':
		t.flush()
	case c == '\t':
		t.add(' ')
	case c < 0x20, c == 0x7f:
		// Carriage returns and other controls say nothing a log needs.
	default:
		t.add(c)
	}
}

func (t *Tail) add(c byte) {
	if len(t.line) >= maxLineBytes {
		t.cut = true
		return
	}
	t.line = append(t.line, c)
}

func (t *Tail) text() string {
	s := cleanUTF8(t.line)
	if t.cut {
		s += "…"
	}
	return s
}

// flush ends a line. Empty lines are not kept: they would push out the ones
// that say something.
func (t *Tail) flush() {
	s := t.text()
	t.line, t.cut = t.line[:0], false
	if strings.TrimSpace(s) == "" {
		return
	}
	t.ring[t.next] = s
	t.next++
	if t.next == len(t.ring) {
		t.next, t.full = 0, true
	}
	if t.onLine != nil {
		t.onLine(s)
	}
}

// cleanUTF8 replaces what is not UTF-8 and drops the C1 control characters,
// which some terminals take for escape sequences.
func cleanUTF8(b []byte) string {
	s := strings.ToValidUTF8(string(b), string(utf8.RuneError))
	return strings.Map(func(r rune) rune {
		if r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}
