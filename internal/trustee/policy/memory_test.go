package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A policy whose strings double is ended, not the program. It allocates 700
// MiB, so it is not run side by side with others.
func TestMemory(t *testing.T) { //nolint:paralleltest // see above
	if testing.Short() {
		t.Skip("allocates hundreds of MiB")
	}
	var text strings.Builder
	text.WriteString("package policy\nallow if {\n\tx0 := input.s\n")
	const n = 140
	for i := range n {
		// Small steps once it is large, so that there is a call to end between.
		if i < 19 {
			fmt.Fprintf(&text, "\tx%d := concat(\"\", [x%d, x%d])\n", i+1, i, i)
		} else {
			fmt.Fprintf(&text, "\tx%d := concat(\"\", [x%d, \"y\"])\n", i+1, i)
		}
	}
	fmt.Fprintf(&text, "\tcount(x%d) == 0\n}\n", n)
	p, err := Compile(t.Context(), Options{Name: "m.rego", Text: text.String(), Rules: []string{"allow"}, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Eval(t.Context(), "allow", input(t, `{"s":"0123456789abcdef"}`), nil, new(bool))
	if err == nil || !strings.Contains(err.Error(), "memory grew by more than 512 MiB") {
		t.Errorf("got %v", err)
	}
}
