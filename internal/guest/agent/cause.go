package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/layer"
)

// cause names the kind of a failure, for the operator of a guest that does not
// tell its host more. Every kind is something that the host does or sees
// itself: it carries the network and serves what is pulled. The texts are fixed,
// so that nothing of the workload is in them. Empty: none of these kinds.
func cause(err error) string {
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	if status, ok := errors.AsType[*kbs.StatusError](err); ok && (status.Status >= 500 || status.Status == 429) {
		return "the trustee is overloaded or failing"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "a server's certificate is not trusted"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "a server's certificate is not trusted"
	}
	if _, ok := errors.AsType[*oci.MismatchError](err); ok {
		return "content is not what its digest says"
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && !dns.Timeout() {
		return "a name was not resolved"
	}
	switch {
	case is(oci.ErrNotFound):
		return "the registry does not have it"
	case is(crypt.ErrMAC):
		return "an encrypted layer is not what was encrypted"
	case is(layer.ErrLimit):
		return "the image is beyond the guest's limits"
	case is(unix.ENOSPC, unix.ENOMEM):
		return "no space is left: give the machine more memory"
	case is(unix.ECONNREFUSED, unix.ECONNRESET):
		return "a connection was refused"
	case is(unix.ENETUNREACH, unix.EHOSTUNREACH):
		return "the network cannot be reached"
	case is(context.DeadlineExceeded, os.ErrDeadlineExceeded):
		return "it took too long"
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return "it took too long"
	}
	return ""
}
