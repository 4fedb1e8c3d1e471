package snpattest

import (
	"context"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/report"

	"github.com/coffer-project/coffer/tee/internal/tsm"
)

// provider is what the kernel's SNP driver calls itself.
const provider = "sev_guest"

// reports is the kernel's report interface: outblob is the report and auxblob the
// certificate table.
type reports struct{ client configfsi.Client }

func (s reports) report(_ context.Context, reportData [reportDataSize]byte) (raw, table []byte, err error) {
	response, err := tsm.Get(s.client, provider, &report.Request{InBlob: reportData[:], Privilege: &report.Privilege{Level: 0}, GetAuxBlob: true})
	if err != nil {
		return nil, nil, err
	}
	return response.OutBlob, response.AuxBlob, nil
}
