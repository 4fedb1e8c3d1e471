package sandbox

import (
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/internal/host/platform"
)

// Kind is how a sandbox's machine is protected.
type Kind string

const (
	// Auto is SNP where the host has it, else Soft. It is never TDX, since
	// neither guest nor trustee of this release knows its evidence.
	Auto Kind = "auto"
	// Soft is the software TEE: the protocol of SEV-SNP without its
	// protection, for development.
	Soft Kind = "soft"
	// SoftTDX is the software TEE with the quotes of TDX.
	SoftTDX Kind = "soft-tdx"
	// SNP is AMD SEV-SNP.
	SNP Kind = "snp"
	// TDX is Intel TDX.
	TDX Kind = "tdx"
	// None has no evidence at all; only development guests accept it.
	None Kind = "none"
)

// kindNames are for messages.
const kindNames = "auto, soft, soft-tdx, snp, tdx or none"

// ParseKind reads a kind; empty is Auto.
func ParseKind(s string) (Kind, error) {
	switch k := Kind(s); k {
	case "":
		return Auto, nil
	case Auto, Soft, SoftTDX, SNP, TDX, None:
		return k, nil
	}
	return "", fmt.Errorf("tee: expected %s, got %q", kindNames, s)
}

// Hardware says whether a processor protects the machine.
func (k Kind) Hardware() bool { return k == SNP || k == TDX }

// Software says whether the software TEE stands in for a processor.
func (k Kind) Software() bool { return k == Soft || k == SoftTDX }

// Choose resolves Auto by the host's facts and says why. A kind that is named
// must be there.
func Choose(k Kind, f platform.Facts) (Kind, string, error) {
	switch k {
	case Soft, SoftTDX, None:
		return k, "asked for", nil
	case SNP:
		if f.SNP != nil {
			return "", "", fmt.Errorf("tee snp: %w", f.SNP)
		}
		return k, "asked for", nil
	case TDX:
		if f.TDX != nil {
			return "", "", fmt.Errorf("tee tdx: %w", f.TDX)
		}
		return k, "asked for", nil
	case Auto, "":
	default:
		return "", "", fmt.Errorf("tee: expected %s, got %q", kindNames, k)
	}
	switch {
	case f.SNP == nil:
		return SNP, "this host launches SEV-SNP guests", nil
	case f.TDX == nil:
		return Soft, "this host launches TDX guests, but their evidence is not supported yet; the software TEE protects nothing: " + oneLine(f.SNP), nil
	}
	return Soft, fmt.Sprintf("this host has no confidential hardware, the software TEE protects nothing: %s; %s",
		oneLine(f.SNP), oneLine(f.TDX)), nil
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
