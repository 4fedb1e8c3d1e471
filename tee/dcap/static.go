package dcap

import (
	"context"
	"fmt"

	"github.com/coffer-project/coffer/tee"
)

// Family names a platform family's TCB info.
type Family struct {
	Kind  Kind
	FMSPC [6]byte
}

// Static is a [Collateral] of documents at hand, such as those of a
// development root. It must not change while it is in use.
type Static struct {
	TCBInfos     map[Family]Signed
	QEIdentities map[Kind]Signed
	PCKCRLs      map[CA]Signed
	Root         []byte // the root's revocation list, DER
}

func lacking(format string, args ...any) error {
	return &tee.CollateralError{Item: fmt.Sprintf(format, args...), Reason: tee.CollateralMissing}
}

// TCBInfo implements [Collateral].
func (s *Static) TCBInfo(_ context.Context, k Kind, fmspc [6]byte) (Signed, error) {
	if d, ok := s.TCBInfos[Family{k, fmspc}]; ok {
		return d, nil
	}
	return Signed{}, lacking("TCB info of %s platform family %s", k, FMSPCText(fmspc))
}

// QEIdentity implements [Collateral].
func (s *Static) QEIdentity(_ context.Context, k Kind) (Signed, error) {
	if d, ok := s.QEIdentities[k]; ok {
		return d, nil
	}
	return Signed{}, lacking("identity of the %s quoting enclave", k)
}

// PCKCRL implements [Collateral].
func (s *Static) PCKCRL(_ context.Context, ca CA) (Signed, error) {
	if d, ok := s.PCKCRLs[ca]; ok {
		return d, nil
	}
	return Signed{}, lacking("revocation list of the PCK %s CA", ca)
}

// RootCRL implements [Collateral].
func (s *Static) RootCRL(context.Context) ([]byte, error) {
	if s.Root == nil {
		return nil, lacking("revocation list of the root")
	}
	return s.Root, nil
}
