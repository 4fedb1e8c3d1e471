package boot

import (
	"fmt"
	"strings"
)

// maxCmdline is x86's COMMAND_LINE_SIZE with room to spare.
const maxCmdline = 4096

// TEE is how the guest is to find its environment.
type TEE string

// Values of coffer.tee.
const (
	// TEEAuto takes the hardware's environment, and nothing else.
	TEEAuto TEE = "auto"
	// TEETPM takes a TPM alone. It is never taken otherwise: any host can
	// offer one, and what it proves depends on who makes and keeps it.
	TEETPM TEE = "tpm"
	// TEESoft takes the software TEE's port, for SEV-SNP reports.
	TEESoft TEE = "soft"
	// TEESoftTDX takes the software TEE's port, for TDX quotes.
	TEESoftTDX TEE = "soft-tdx"
	// TEENone runs without evidence: development only.
	TEENone TEE = "none"
)

// Hardware tells whether the environment needs drivers.
func (t TEE) Hardware() bool { return t == TEEAuto || t == TEETPM }

// Cmdline is what the kernel command line tells the agent. It is part of the
// launch measurement, so what it says was said by whoever made the reference
// value, not by the host.
type Cmdline struct {
	TEE TEE
	// Development permits what must never run for real: no TEE.
	Development bool
	// Debug turns the agent's debug messages on.
	Debug bool
	// RESTAPI is which groups of the REST API containers may use where initdata
	// does not say: none, resource, attestation or all; "" is resource.
	RESTAPI string
}

// ParseCmdline reads the parameters that start with "coffer." and leaves the
// kernel's own alone. A coffer parameter that is unknown, repeated or has a
// value of the wrong kind is an error: a mistyped one must not weaken a guest.
func ParseCmdline(s string) (Cmdline, error) {
	c := Cmdline{TEE: TEEAuto}
	if len(s) > maxCmdline {
		return c, fmt.Errorf("kernel command line: %d bytes, at most %d are read", len(s), maxCmdline)
	}
	seen := map[string]bool{}
	for field := range strings.FieldsSeq(s) {
		if !strings.HasPrefix(field, "coffer.") {
			continue
		}
		name, value, hasValue := strings.Cut(field, "=")
		if seen[name] {
			return c, fmt.Errorf("kernel command line: %s is given twice", name)
		}
		seen[name] = true
		switch name {
		case "coffer.tee":
			switch t := TEE(value); t {
			case TEEAuto, TEETPM, TEESoft, TEESoftTDX, TEENone:
				c.TEE = t
			default:
				return c, fmt.Errorf("kernel command line: coffer.tee: expected auto, tpm, soft, soft-tdx or none, got %q", value)
			}
		case "coffer.rest_api":
			switch value {
			case "none", "resource", "attestation", "all":
				c.RESTAPI = value
			default:
				return c, fmt.Errorf("kernel command line: coffer.rest_api: expected none, resource, attestation or all, got %q", value)
			}
		case "coffer.development", "coffer.debug":
			if hasValue {
				return c, fmt.Errorf("kernel command line: %s takes no value, got %q", name, value)
			}
			if name == "coffer.debug" {
				c.Debug = true
			} else {
				c.Development = true
			}
		default:
			return c, fmt.Errorf("kernel command line: unknown parameter %s", name)
		}
	}
	if c.TEE == TEENone && !c.Development {
		return c, fmt.Errorf("kernel command line: coffer.tee=none is for development and needs coffer.development next to it")
	}
	return c, nil
}
