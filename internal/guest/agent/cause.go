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

// kind is the kind of a failure, and what to do about it.
type kind struct {
	what, do string
	// said: such an error says itself what to do, with more than can be said here.
	said bool
}

func (k kind) String() string { return k.what + "; " + k.do }

var (
	overloaded  = kind{what: "the trustee is overloaded or failing", do: "look at the trustee; the kubelet tries again"}
	untrusted   = kind{what: "a server's certificate is not trusted", do: "give the guest its authority (coffer prepare --registry-ca, or unsealed_registries of the runtime configuration)", said: true}
	altered     = kind{what: "content is not what its digest says", do: "the registry, a mirror or a proxy alters it: push the image again, or pull from another one"}
	unresolved  = kind{what: "a name was not resolved", do: "check the name and the pod's DNS"}
	absent      = kind{what: "the registry does not have it", do: "check the image's registry, repository, tag and digest, and that it was pushed there"}
	unwelcome   = kind{what: "the registry wants credentials", do: "add them to the pod's auth.json (image.authenticated_registry_credentials_uri of its initdata, or unsealed_registries of the runtime configuration), unless the repository's name is wrong", said: true}
	forged      = kind{what: "an encrypted layer is not what was encrypted", do: "encrypt and push the image again"}
	excessive   = kind{what: "the image is beyond the guest's limits", do: "make the image smaller"}
	full        = kind{what: "no space is left", do: "give the machine more memory (resources.limits.memory) or a larger scratch disk", said: true}
	closed      = kind{what: "a connection was refused", do: "check that the server runs, and that the pod's network lets it be reached"}
	unreachable = kind{what: "the network cannot be reached", do: "check the pod's network, its routes and its NetworkPolicy"}
	slow        = kind{what: "it took too long", do: "check that the server is well, and that the pod's network lets it be reached"}
)

// cause names the kind of a failure, for the operator of a guest that does not
// tell its host more. Every kind is something that the host does or sees
// itself: it carries the network and serves what is pulled. The texts are fixed,
// so that nothing of the workload is in them. Nil: none of these kinds.
func cause(err error) *kind {
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	if status, ok := errors.AsType[*kbs.StatusError](err); ok && (status.Status >= 500 || status.Status == 429) {
		return &overloaded
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &untrusted
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return &untrusted
	}
	if _, ok := errors.AsType[*oci.MismatchError](err); ok {
		return &altered
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && !dns.Timeout() {
		return &unresolved
	}
	switch {
	case is(oci.ErrNotFound):
		return &absent
	case is(oci.ErrUnauthorized):
		return &unwelcome
	case is(crypt.ErrMAC):
		return &forged
	case is(layer.ErrLimit):
		return &excessive
	case is(unix.ENOSPC, unix.ENOMEM):
		return &full
	case is(unix.ECONNREFUSED, unix.ECONNRESET):
		return &closed
	case is(unix.ENETUNREACH, unix.EHOSTUNREACH):
		return &unreachable
	case is(context.DeadlineExceeded, os.ErrDeadlineExceeded):
		return &slow
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return &slow
	}
	return nil
}
