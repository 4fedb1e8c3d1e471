package podpolicy

import (
	"strconv"
	"strings"
)

// Linux signal numbers that are part of every policy.
const (
	sigINT  = 2
	sigKILL = 9
	sigTERM = 15
)

// signalNames of Linux on amd64 and arm64 (signal(7)); the index is the number.
func signalNames() []string {
	return []string{"", "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1",
		"SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN",
		"SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS"}
}

// signalNumber returns 0 for what is no signal's name.
func signalNumber(name string) uint32 {
	for n, s := range signalNames() {
		if n > 0 && s == name {
			return uint32(n)
		}
	}
	if offset, ok := strings.CutPrefix(name, "SIGRTMIN+"); ok {
		// glibc's and musl's SIGRTMIN; the kernel's own first two are theirs.
		if n, err := parseDigits(offset); err == nil && n <= 30 && offset == strconv.FormatUint(n, 10) {
			return 34 + uint32(n)
		}
	}
	return 0
}

// stopSignal reads an image's StopSignal: a name with or without SIG, or a
// number. Empty and unknown ones give 0.
func stopSignal(s string) uint32 {
	if n, err := parseDigits(s); err == nil && n <= 64 {
		return uint32(n)
	}
	return signalNumber("SIG" + strings.TrimPrefix(s, "SIG"))
}
