package agent

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"

	"github.com/coffer-project/coffer/internal/guest/attestation"
	"github.com/coffer-project/coffer/internal/guest/measurement"
	"github.com/coffer-project/coffer/internal/guest/restapi"
	"github.com/coffer-project/coffer/tee"
)

// rest is the containers' HTTP interface before it is served.
type rest struct {
	server   *restapi.Server
	listener net.Listener
}

// openREST opens the address of the containers' HTTP interface; nil: there is to be
// none. Who does not serve it closes it.
func (a *Agent) openREST(ctx context.Context, sb *sandbox, facts attestation.Facts) (*rest, error) {
	if a.o.ListenREST == nil {
		return nil, nil
	}
	features, err := restapi.ParseFeatures(cmp.Or(string(sb.guest.REST), a.o.RESTFeatures))
	if err != nil {
		return nil, err
	}
	if features == (restapi.Features{}) {
		return nil, nil
	}
	o := restapi.Options{
		Version: a.o.Build, Features: features, Hub: sb.hub, Evidencer: restapi.Attesters{Primary: sb.attester, Devices: sb.additional}, Recorder: recorder{sb.recorder}, TEE: string(facts.TEE), Logger: a.log,
	}
	for _, d := range sb.additional {
		if d.TEE() != tee.RuntimeLog {
			o.Devices = append(o.Devices, string(d.TEE()))
		}
	}
	server, err := restapi.New(o)
	if err != nil {
		return nil, err
	}
	l, err := a.o.ListenREST(ctx)
	if err != nil {
		return nil, err
	}
	return &rest{server, l}, nil
}

func (r *rest) close() {
	if r != nil {
		_ = r.listener.Close()
	}
}

// serve begins to answer, for the life of the machine.
func (r *rest) serve(ctx context.Context, log *slog.Logger) {
	if r == nil {
		return
	}
	life := context.WithoutCancel(ctx)
	go func() {
		if err := r.server.Serve(life, r.listener); err != nil {
			log.WarnContext(life, "the containers' HTTP interface ends", "error", err)
		}
	}()
}

// port is where it listens; 0 if it does not.
func (r *rest) port() uint32 {
	if r == nil {
		return 0
	}
	addr, err := netip.ParseAddrPort(r.listener.Addr().String())
	if err != nil {
		return 0
	}
	return uint32(addr.Port())
}

// recorder measures what workloads report.
type recorder struct{ r *measurement.Recorder }

// Record implements [restapi.Recorder].
func (r recorder) Record(ctx context.Context, domain, operation, content string) error {
	if r.r == nil {
		return restapi.ErrNotEnabled
	}
	return r.r.RecordForWorkload(ctx, domain, operation, content)
}
