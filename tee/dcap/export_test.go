package dcap

// TakeForIntels has v take the development roots for Intel's own, so that tests
// can mint what ends in Intel's root.
func TakeForIntels(v *Verifier) {
	for _, r := range v.roots.roots {
		r.Development = false
	}
}

// IntelQESigner is the signer of Intel's quoting enclaves.
func IntelQESigner(k Kind) [32]byte {
	signer, _ := intelQE(k)
	return signer
}
