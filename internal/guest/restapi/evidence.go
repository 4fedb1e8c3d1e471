package restapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee"
)

// maxReportData is what every environment's evidence can carry.
const maxReportData = 64

// Attesters is an [Evidencer] that asks the environment and its devices.
type Attesters struct {
	Primary tee.Attester
	Devices []tee.Attester
}

var _ Evidencer = Attesters{}

func checkReportData(data []byte) error {
	if len(data) > maxReportData {
		return fmt.Errorf("runtime_data: %d bytes, evidence holds at most %d: send a digest", len(data), maxReportData)
	}
	return nil
}

// Evidence is the primary environment's, over at most 64 bytes.
func (a Attesters) Evidence(ctx context.Context, data []byte) ([]byte, error) {
	if err := checkReportData(data); err != nil {
		return nil, err
	}
	if a.Primary == nil {
		return nil, errors.New("this guest has no TEE")
	}
	doc, err := a.Primary.Evidence(ctx, data)
	if err != nil {
		return nil, fmt.Errorf("%s evidence: %w", a.Primary.TEE(), err)
	}
	return doc, nil
}

// AdditionalEvidence is that of the devices which are there, empty without any.
func (a Attesters) AdditionalEvidence(ctx context.Context, data []byte) ([]byte, error) {
	if err := checkReportData(data); err != nil {
		return nil, err
	}
	all := map[tee.Name]json.RawMessage{}
	for _, d := range a.Devices {
		doc, err := d.Evidence(ctx, data)
		if err != nil {
			return nil, fmt.Errorf("%s evidence: %w", d.TEE(), err)
		}
		if doc != nil {
			all[d.TEE()] = doc
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	return json.Marshal(all)
}
