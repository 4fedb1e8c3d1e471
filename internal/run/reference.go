package run

import (
	"encoding/hex"
	"fmt"

	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/reference"
)

// ReferenceValue is what a guest will report and the trustee has to expect.
type ReferenceValue struct {
	// Name under which the built-in policy reads it; Value is hex.
	Name        string `json:"name"`
	Value       string `json:"value"`
	Description string `json:"description"`
}

// ReferenceValues predicts the measurements of a guest image, under the names
// that the trustee's built-in policy reads.
func ReferenceValues(o GuestOptions, memoryMiB int) ([]ReferenceValue, error) {
	launch, kind, err := GuestLaunch(o)
	if err != nil {
		return nil, err
	}
	if kind != sandbox.TDX && kind != sandbox.SoftTDX {
		digest, err := measure.SNP(*launch)
		if err != nil {
			return nil, err
		}
		return []ReferenceValue{{measurementName, hex.EncodeToString(digest[:]), fmt.Sprintf("guest image, %d vcpus", launch.Inputs().VCPUs)}}, nil
	}
	p, err := reference.TDX(sandbox.TDXLaunch(*launch, memoryMiB))
	if err != nil {
		return nil, err
	}
	var values []ReferenceValue
	for _, r := range p.References {
		if r.Name == unregistered {
			continue
		}
		for _, v := range r.Values {
			values = append(values, ReferenceValue{r.Name, v.Value, "guest image, " + v.Description})
		}
	}
	return values, nil
}
