// Package demo shows what Coffer is for: an encrypted, signed image runs in an
// attested virtual machine, and the attacks that the host would try are
// refused, each for a stated reason. Every act goes through the product's own
// path (registry, trustee, guest, agent protocol); an act is right only if what
// happened is what was expected.
package demo

import (
	"encoding/json"
	"io"
	"time"

	"github.com/coffer-project/coffer/internal/cli/ui"
)

// Act is one act's outcome, as `coffer demo --output json` prints it.
type Act struct {
	Name    string  `json:"name"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	// Expected and Got are sentences for a person.
	Expected string `json:"expected"`
	Got      string `json:"got"`
}

// Report is the outcome of a demo.
type Report struct {
	Acts []Act `json:"acts"`
}

// OK tells whether every act did what it should.
func (r Report) OK() bool {
	for _, a := range r.Acts {
		if !a.OK {
			return false
		}
	}
	return len(r.Acts) > 0
}

// WriteJSON writes the report as one JSON document.
func (r Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// act runs one act and records it.
func (r *Report) act(u *ui.UI, name, expected string, run func() (got string, err error)) error {
	u.Status("%s", name)
	started := time.Now()
	got, err := run()
	a := Act{Name: name, OK: err == nil, Seconds: time.Since(started).Seconds(), Expected: expected, Got: got}
	if err != nil {
		if got != "" {
			got += "\n"
		}
		a.Got = got + err.Error()
	}
	r.Acts = append(r.Acts, a)
	verdict := "ok  "
	if !a.OK {
		verdict = "FAIL"
	}
	u.Line("%s %s (%.1f s)\n%s", verdict, name, a.Seconds, ui.Indent("expected: "+expected+"\n"+a.Got))
	return err
}
