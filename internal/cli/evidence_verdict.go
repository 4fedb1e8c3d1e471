package cli

import (
	"fmt"

	"github.com/coffer-project/coffer/tee"
)

// verdict is what `coffer evidence verify --output json` prints. Its form is a
// contract with scripts: members may be added, none changed.
type verdict struct {
	TEE      tee.Name       `json:"tee"`
	Verified bool           `json:"verified"`
	Claims   map[string]any `json:"claims"`
	Failures []failure      `json:"failures"`
	Warnings []failure      `json:"warnings"`
	// Simulated is whether the evidence is of a software TEE.
	Simulated bool `json:"simulated"`
	// Devices are the claims of each device, where evidence is of several.
	Devices []deviceClaims `json:"devices,omitempty"`
}

type deviceClaims struct {
	Class  tee.Class      `json:"class"`
	Claims map[string]any `json:"claims"`
}

// failure is a tee.Failure of which every member is printed.
type failure struct {
	Check    string `json:"check"`
	Field    string `json:"field"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
	Help     string `json:"help"`
}

// failures is never nil: the list is printed as [].
func failures(list []tee.Failure) []failure {
	out := make([]failure, len(list))
	for i, f := range list {
		out[i] = failure(f)
	}
	return out
}

func (a *app) printVerdict(v *verdict) error {
	if a.json() {
		return a.printJSON(v)
	}
	for _, w := range v.Warnings {
		a.warnf("%s", tee.Failure(w).String())
	}
	if !v.Verified {
		what := "is NOT genuine"
		if len(v.Claims) > 0 {
			what = "is genuine, but not what the reference values allow"
		}
		a.printf("%s evidence %s\n", v.TEE, what)
		for _, f := range v.Failures {
			a.printFailure(f)
		}
		return nil
	}
	kind := "genuine"
	if v.Simulated {
		kind = "genuine as of a software TEE, which protects nothing"
	}
	a.printf("%s evidence is %s\n", v.TEE, kind)
	if len(v.Devices) == 0 {
		return a.printFields(v.Claims)
	}
	for i, d := range v.Devices {
		a.printf("\n%s %d\n", d.Class, i)
		if err := a.printFields(d.Claims); err != nil {
			return err
		}
	}
	return nil
}

// warnf writes a line to standard error.
func (a *app) warnf(format string, args ...any) {
	_, _ = fmt.Fprintf(a.env.Stderr, "warning: %s\n", clean(fmt.Sprintf(format, args...)))
}

func (a *app) printFailure(f failure) {
	a.printf("\n  %s (%s)\n", clean(f.Check), clean(f.Field))
	for _, part := range []struct{ name, text string }{{"expected", f.Expected}, {"got", f.Got}, {"help", f.Help}} {
		if part.text != "" {
			a.printf("    %-9s %s\n", part.name, clean(part.text))
		}
	}
}
