package snpattest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/report"
)

const (
	// provider is what the kernel's SNP driver calls itself.
	provider = "sev_guest"
	// maxRaces is how often a request is repeated that another process
	// disturbed.
	maxRaces = 3
)

// tsm is the report interface in configfs (Linux,
// Documentation/ABI/testing/configfs-tsm-report): inblob and privlevel are
// written, outblob is the report and auxblob the certificate table.
type tsm struct{ client configfsi.Client }

func (s tsm) report(_ context.Context, reportData [reportDataSize]byte) (raw, table []byte, err error) {
	request := &report.Request{InBlob: reportData[:], Privilege: &report.Privilege{Level: 0}, GetAuxBlob: true}
	var response *report.Response
	for range maxRaces {
		response, err = report.Get(s.client, request)
		if _, raced := errors.AsType[*report.GenerationErr](err); !raced {
			break
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if got := strings.TrimSpace(response.Provider); got != provider {
		return nil, nil, fmt.Errorf("provider: expected %q, got %.40q; this is not an SNP guest", provider, got)
	}
	return response.OutBlob, response.AuxBlob, nil
}
