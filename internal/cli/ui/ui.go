// Package ui shows long work to a person: on a terminal one status line that
// keeps its place and counts the seconds, elsewhere one plain line for each
// thing that was finished. It writes to standard error, so that standard
// output stays the command's own.
package ui

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// frames of the spinner; the line also counts seconds, so that it means
// something without motion or colour.
var frames = [...]string{"-", "\\", "|", "/"}

// refresh is how often the status line is drawn.
const refresh = 200 * time.Millisecond

// UI is one status line. It is safe for concurrent use.
type UI struct {
	mu       sync.Mutex
	out      io.Writer
	terminal bool
	width    int
	started  time.Time
	status   string
	since    time.Time
	stop     chan struct{}
	drawn    bool
}

// New writes to out; it draws a status line only if out is a terminal.
func New(out io.Writer) *UI {
	u := &UI{out: out, started: time.Now(), width: 80}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		u.terminal = true
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 10 {
			u.width = w
		}
	}
	return u
}

// Status replaces the status line; an empty text removes it. Without a
// terminal it does nothing.
func (u *UI) Status(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	if text != u.status {
		u.since = time.Now()
	}
	u.status = text
	if !u.terminal {
		return
	}
	switch {
	case text == "":
		u.erase()
		if u.stop != nil {
			close(u.stop)
			u.stop = nil
		}
	case u.stop == nil:
		u.stop = make(chan struct{})
		go u.animate(u.stop)
	default:
		u.draw(0)
	}
}

// Line prints one finished line above the status line, with the time since the
// start.
func (u *UI) Line(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.erase()
	_, _ = fmt.Fprintf(u.out, "[%6.1fs] %s\n", time.Since(u.started).Seconds(), fmt.Sprintf(format, args...))
}

// Text prints lines as they are.
func (u *UI) Text(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.erase()
	_, _ = fmt.Fprintf(u.out, format, args...)
}

// Close removes the status line.
func (u *UI) Close() { u.Status("") }

func (u *UI) animate(stop <-chan struct{}) {
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-tick.C:
			u.mu.Lock()
			if u.status != "" {
				u.draw(n)
			}
			u.mu.Unlock()
		}
	}
}

func (u *UI) draw(n int) {
	line := fmt.Sprintf("%s %s (%.0fs)", frames[n%len(frames)], u.status, time.Since(u.since).Seconds())
	if runes := []rune(line); len(runes) >= u.width {
		line = string(runes[:u.width-1])
	}
	_, _ = io.WriteString(u.out, "\r\x1b[K"+line)
	u.drawn = true
}

func (u *UI) erase() {
	if u.drawn {
		_, _ = io.WriteString(u.out, "\r\x1b[K")
		u.drawn = false
	}
}

// Indent puts two spaces before every line of text.
func Indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ")
}
