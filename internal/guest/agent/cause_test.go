package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/layer"
)

// The operator of a hardware guest learns the kind of a failure, and nothing of
// what the workload said.
func TestCauseOfAFailure(t *testing.T) {
	t.Parallel()
	const hidden = "hunter2"
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for want, errs := range map[string][]error{
		"a connection was refused":                       {dial(unix.ECONNREFUSED)},
		"the network cannot be reached":                  {dial(unix.ENETUNREACH), dial(unix.EHOSTUNREACH)},
		"a name was not resolved":                        {&net.DNSError{Name: hidden, IsNotFound: true}},
		"it took too long":                               {dial(unix.ETIMEDOUT), os.ErrDeadlineExceeded, &net.DNSError{Name: hidden, IsTimeout: true}},
		"a server's certificate is not trusted":          {x509.UnknownAuthorityError{}},
		"the registry does not have it":                  {fmt.Errorf("%w: %s", oci.ErrNotFound, hidden)},
		"content is not what its digest says":            {&oci.MismatchError{}},
		"an encrypted layer is not what was encrypted":   {crypt.ErrMAC},
		"the image is beyond the guest's limits":         {fmt.Errorf("%w: %s", layer.ErrLimit, hidden)},
		"no space is left: give the machine more memory": {&os.PathError{Op: "write", Path: hidden, Err: unix.ENOSPC}},
		"the trustee is overloaded or failing":           {&kbs.StatusError{Status: 503}, &kbs.StatusError{Status: 429}},
	} {
		for _, e := range errs {
			a := &Agent{o: Options{Attestation: factsSource(t, false)}, log: slog.New(slog.DiscardHandler), events: newEventLog(time.Now)}
			st, _ := status.FromError(a.fail(t.Context(), "CreateContainer", failed("image", fmt.Errorf("%s: %w", hidden, e))))
			if !strings.Contains(st.Message(), "image: "+want) || strings.Contains(st.Message(), hidden) {
				t.Errorf("%v: told %q, want it to name %q only", e, st.Message(), want)
			}
		}
	}
	if got := cause(errors.New(hidden)); got != "" {
		t.Errorf("another failure has the cause %q", got)
	}
}
