// Package network makes the network that a CNI plugin gave a pod the network of
// a virtual machine.
//
// A CNI plugin leaves interfaces with addresses and routes in the pod's network
// namespace, most often one end of a veth pair. [Attach] puts a tap device
// beside each of them and has the kernel hand every frame that arrives at the
// one to the other (ingress qdisc, u32 filter, mirred action). The guest's card
// has the interface's hardware address, MTU, addresses, routes and fixed
// neighbours, so for everybody outside the machine is the pod.
//
// Packets still pass the host's end of the interface as they would without a
// machine: what a CNI plugin does there (NetworkPolicy, masquerading, bandwidth
// limits, counters) applies unchanged. The namespace's own stack no longer sees
// what arrives; netfilter rules and listeners inside the pod's namespace on the
// host have no effect on the guest.
//
// Nothing is left behind: [Attachment.Close] and, after the death of the
// process that attached, [Remove] take away qdiscs and taps. The taps also end
// by themselves with the last process that has them open.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// Options of Attach.
type Options struct {
	// Logger is told what the guest does not get; nil: nobody is.
	Logger *slog.Logger
}

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// Attachment is a pod's network, connected to taps. It keeps the network
// namespace alive until Close. Its methods are safe for concurrent use.
type Attachment struct {
	// Cards are for vmm.Machine, in the order of the interfaces. The taps belong
	// to the attachment.
	Cards []vmm.Card
	// Guest is what the guest is to be told, without DNS and hosts, which are
	// not in the namespace. It is the caller's to complete.
	Guest *agentapi.Network

	mu     sync.Mutex
	ns     *os.File // nil after Close
	closed error
}

// Attach connects the interfaces of the network namespace at a path (for
// example /var/run/netns/cni-…) with taps. Close must be called when it
// succeeds; nothing is left when it fails. Errors are ErrHostNetwork,
// ErrNoNamespace, ErrNoAddress, ErrInUse or the kernel's, wrapped in a sentence
// that says what to do.
func Attach(ctx context.Context, netns string, o Options) (*Attachment, error) {
	ns, err := Open(netns)
	if err != nil {
		return nil, err
	}
	a := &Attachment{ns: ns}
	if err := a.attach(ctx, o.logger().With("netns", netns)); err != nil {
		_ = a.Close()
		return nil, fmt.Errorf("network namespace %s: %w", netns, err)
	}
	return a, nil
}

func (a *Attachment) attach(ctx context.Context, log *slog.Logger) error {
	h, err := handle(a.ns)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := idle(ctx, h); err != nil {
		return err
	}
	found, err := scan(h, log)
	if err != nil {
		return err
	}
	for i, n := range found.nics {
		t, err := a.connect(ctx, h, tapName(i), n)
		if err != nil {
			return fmt.Errorf("interface %s: %w", n.name, err)
		}
		log.DebugContext(ctx, "interface connected", "interface", n.name, "tap", tapName(i), "mac", n.mac.String(), "mtu", n.mtu)
		a.Cards[i].Tap = t
	}
	a.Guest = found.guest()
	return nil
}

// connect makes the tap of an interface. The card is the attachment's before
// anything can fail, so that Close finds the descriptor.
func (a *Attachment) connect(ctx context.Context, h *netlink.Handle, name string, n nic) (*os.File, error) {
	var tap *os.File
	err := retry(ctx, func() error {
		return Inside(a.ns, func() (err error) {
			tap, err = openTap(name)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	a.Cards = append(a.Cards, vmm.Card{MAC: n.mac, Tap: tap, MTU: n.mtu})
	link, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	index := link.Attrs().Index
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"set the MTU of the tap", func() error { return h.LinkSetMTU(link, n.mtu) }},
		// The tap is a wire: the host must not speak on it.
		{"turn off addresses of the tap", func() error {
			return ignore(h.LinkSetIP6AddrGenMode(link, addressesNone), unix.EAFNOSUPPORT, unix.EOPNOTSUPP)
		}},
		{"redirect from the tap", func() error { return redirect(h, index, n.index) }},
		{"redirect to the tap", func() error { return redirect(h, n.index, index) }},
		{"turn on the tap", func() error { return h.LinkSetUp(link) }},
	} {
		if err := retry(ctx, step.do); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return tap, nil
}

// addressesNone is IN6_ADDR_GEN_MODE_NONE (linux/if_link.h).
const addressesNone = 1

// Close takes taps and qdiscs away and closes the taps' descriptors; frames to
// and from a machine that still runs are lost. It may be called again.
func (a *Attachment) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ns == nil {
		return a.closed
	}
	a.closed = sweep(a.ns)
	for _, c := range a.Cards {
		if err := c.Tap.Close(); !errors.Is(err, os.ErrClosed) {
			a.closed = errors.Join(a.closed, err)
		}
	}
	a.closed = errors.Join(a.closed, a.ns.Close())
	a.ns = nil
	if a.closed != nil {
		a.closed = fmt.Errorf("network: clean up: %w", a.closed)
	}
	return a.closed
}

// Remove takes away what an Attach in the namespace left behind whose process
// has died. A namespace that is gone, or is the host's, has nothing to remove.
// Remove may be called at any time and again.
func Remove(netns string) error {
	ns, err := Open(netns)
	if errors.Is(err, ErrNoNamespace) || errors.Is(err, ErrHostNetwork) {
		return nil
	}
	if err != nil {
		return err
	}
	err = errors.Join(sweep(ns), ns.Close())
	if err != nil {
		return fmt.Errorf("network namespace %s: clean up: %w", netns, err)
	}
	return nil
}

// How long the kernel may be busy with a device: the last holder of a tap that
// has just died is still being taken apart.
const (
	retryStep  = 20 * time.Millisecond
	retryLimit = 3 * time.Second
)

// retry repeats what fails with EBUSY.
func retry(ctx context.Context, f func() error) error {
	limit, cancel := context.WithTimeout(ctx, retryLimit)
	defer cancel()
	tick := time.NewTicker(retryStep)
	defer tick.Stop()
	for {
		err := f()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-tick.C:
		case <-limit.Done():
			if ctx.Err() != nil {
				return errors.Join(context.Cause(ctx), err)
			}
			return err
		}
	}
}

// ignore drops some errors.
func ignore(err error, errnos ...unix.Errno) error {
	for _, e := range errnos {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// nic is an interface of the namespace that the guest gets.
type nic struct {
	index int
	name  string
	mac   net.HardwareAddr
	mtu   int
}
