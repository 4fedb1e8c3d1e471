package snp

import "fmt"

// Generation is a processor generation: the name AMD's key service uses.
type Generation string

// The generations that are known.
const (
	Milan Generation = "Milan"
	Genoa Generation = "Genoa" // with Siena and Bergamo
	Turin Generation = "Turin"
)

// GenerationOf maps family and model (CPUID Fn0000_0001) to a generation, or
// to "" where they are not known.
func GenerationOf(family, model uint8) Generation {
	switch {
	case family == 0x19 && model <= 0x0F:
		return Milan
	case family == 0x19 && (model >= 0x10 && model <= 0x1F || model >= 0xA0 && model <= 0xAF):
		return Genoa
	case family == familyTurin && model <= 0x11:
		return Turin
	}
	return ""
}

const familyTurin = 0x1A

// TCB is a set of security patch levels (TCB_VERSION).
type TCB struct {
	// FMC exists on Turin and newer only.
	FMC        *uint8 `json:"fmc"`
	Bootloader uint8  `json:"bootloader"`
	TEE        uint8  `json:"tee"`
	SNP        uint8  `json:"snp"`
	Microcode  uint8  `json:"microcode"`
}

// String lists the levels.
func (t TCB) String() string {
	s := fmt.Sprintf("bootloader %d, tee %d, snp %d, microcode %d", t.Bootloader, t.TEE, t.SNP, t.Microcode)
	if t.FMC != nil {
		s = fmt.Sprintf("fmc %d, ", *t.FMC) + s
	}
	return s
}

// Equal says whether all levels are equal; one that does not exist equals none.
func (t TCB) Equal(u TCB) bool {
	return (t.FMC == nil) == (u.FMC == nil) && t.AtLeast(u) && u.AtLeast(t)
}

// AtLeast says whether no level of t is below that of minimum. A level that t
// does not have counts as zero.
func (t TCB) AtLeast(minimum TCB) bool {
	fmc := func(t TCB) uint8 {
		if t.FMC == nil {
			return 0
		}
		return *t.FMC
	}
	return fmc(t) >= fmc(minimum) && t.Bootloader >= minimum.Bootloader && t.TEE >= minimum.TEE &&
		t.SNP >= minimum.SNP && t.Microcode >= minimum.Microcode
}

// bytes is the little-endian register. Turin put the FMC level first and
// moved the rest.
func (t TCB) bytes(turin bool) (b [8]byte) {
	if turin {
		return [8]byte{*t.FMC, t.Bootloader, t.TEE, t.SNP, 0, 0, 0, t.Microcode}
	}
	return [8]byte{t.Bootloader, t.TEE, 0, 0, 0, 0, t.SNP, t.Microcode}
}

func tcbFromBytes(b []byte, turin bool) TCB {
	if turin {
		fmc := b[0]
		return TCB{FMC: &fmc, Bootloader: b[1], TEE: b[2], SNP: b[3], Microcode: b[7]}
	}
	return TCB{Bootloader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
}
