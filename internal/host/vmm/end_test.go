package vmm

import (
	"strings"
	"testing"
)

// TestEndError: whoever reads how a machine ended learns what to do.
func TestEndError(t *testing.T) {
	for _, tt := range []struct {
		end  End
		want []string
	}{
		{End{Name: "a", Cause: Failed, Detail: "signal: killed"}, []string{"virtual machine a: the emulator failed (signal: killed); ", "kernel log"}},
		{End{Name: "a", Cause: Failed, Detail: "exit status 1", Emulator: []string{"bad option"}}, []string{"(exit status 1); last lines of its QEMU:\n    bad option"}},
		{End{Name: "a", Cause: Reset, Console: []string{"Out of memory"}}, []string{"; want of memory is the usual reason: raise the memory limits", "Out of memory"}},
		{End{Name: "a", Cause: Panicked}, []string{"raise the memory limits"}},
		{End{Name: "a", Cause: PoweredOff}, []string{"virtual machine a: the guest powered off"}},
	} {
		for _, want := range tt.want {
			if got := tt.end.Error(); !strings.Contains(got, want) {
				t.Errorf("want %q, got %q", want, got)
			}
		}
	}
}
