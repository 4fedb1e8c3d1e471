package measure

import "fmt"

// Seed is a launch measured up to its first virtual CPU. The digests for any
// number of CPUs follow from it: every further CPU adds one save area, and these
// are all equal. A verifier that does not know a guest's CPU count keeps the
// seed instead of a list.
type Seed struct {
	// Digest is the launch digest with one virtual CPU.
	Digest [48]byte
	// Layout is empty for a seed that was resumed.
	Layout Layout

	ap [pageSize]byte
}

// ResumeSeed makes a seed of a published launch digest for one CPU. apEIP is
// the firmware's SEV-ES reset address, where every other CPU starts; signature
// is their CPUID Fn0000_0001 EAX, which EC2 and GCE ignore.
func ResumeSeed(one [48]byte, apEIP, signature uint32, features uint64, v VMM) Seed {
	return Seed{Digest: one, ap: vmsaPage(v, apEIP, signature, features)}
}

// Digests returns the launch digests with 1 to n virtual CPUs, at index 0 to
// n-1; n is at most [MaxVCPUs].
func (s Seed) Digests(n int) ([][48]byte, error) {
	if n < 1 || n > MaxVCPUs {
		return nil, fmt.Errorf("measure: vcpus: expected 1 to %d, got %d", MaxVCPUs, n)
	}
	out := make([][48]byte, n)
	out[0] = s.Digest
	contents := s.apContents()
	d := digest{s.Digest}
	for i := 1; i < n; i++ {
		d.page(pageVMSA, vmsaGPA, contents)
		out[i] = d.ld
	}
	return out, nil
}
