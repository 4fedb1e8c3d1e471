package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapRE recognises a tap of ours, within the 15 characters of an interface name.
var tapRE = regexp.MustCompile(`^coffertap[0-9]{1,3}$`)

func tapName(i int) string { return "coffertap" + strconv.Itoa(i) }

// priority of our filters: by it a qdisc is recognised as ours.
const priority = 0xc0ff

// openTap makes a tap in the namespace of the calling thread. It is not
// persistent: it ends with its last descriptor.
func openTap(name string) (*os.File, error) {
	// Non-blocking, as the emulator wants it.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w (load the kernel module tun)", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// ingress is the qdisc of arriving frames.
func ingress(index int) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: ingressHandle, Parent: netlink.HANDLE_INGRESS}}
}

// ingressHandle is ffff:, which the kernel gives every ingress qdisc.
const ingressHandle = 0xffff0000

// redirect hands every frame that arrives at one interface to another, which
// sends it. The classifier u32 with an empty key matches everything, and is
// there where matchall is not.
func redirect(h *netlink.Handle, from, to int) error {
	err := h.QdiscAdd(ingress(from))
	if errors.Is(err, unix.EEXIST) {
		return errors.New("another program has an ingress qdisc on the interface (tc qdisc show shows it; is the CNI plugin chained with one that filters inside the pod's namespace?)")
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("ingress qdisc: %w (load the kernel module sch_ingress)", err)
	}
	if err != nil {
		return fmt.Errorf("ingress qdisc: %w", err)
	}
	err = h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from, Parent: ingressHandle, Priority: priority, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(to)},
	})
	if err == nil {
		return nil
	}
	// Without the filter the qdisc would not be known as ours.
	err = errors.Join(err, h.QdiscDel(ingress(from)))
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("redirection: %w (load the kernel modules cls_u32 and act_mirred)", err)
	}
	return fmt.Errorf("redirection: %w", err)
}

// idle waits until no tap of ours is in the namespace: one that is there is a
// running machine's, or that of one that has just died. Redirections without
// their tap are removed.
func idle(ctx context.Context, h *netlink.Handle) error {
	err := retry(ctx, func() error {
		links, err := h.LinkList()
		for _, l := range links {
			if isTap(l) {
				return fmt.Errorf("%w (%s: %w)", ErrInUse, l.Attrs().Name, unix.EBUSY)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return unredirect(h)
}

func isTap(l netlink.Link) bool {
	return l.Type() == "tuntap" && tapRE.MatchString(l.Attrs().Name)
}

// sweep removes every redirection and tap of ours from the namespace.
func sweep(ns *os.File) error {
	h, err := handle(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	problem := unredirect(h)
	links, err := h.LinkList()
	if err != nil {
		return errors.Join(problem, err)
	}
	for _, l := range links {
		if !isTap(l) {
			continue
		}
		if err := ignore(h.LinkDel(l), unix.ENODEV); err != nil {
			problem = errors.Join(problem, fmt.Errorf("tap %s: %w", l.Attrs().Name, err))
		}
	}
	return problem
}

// unredirect removes our qdiscs, and leaves those of others.
func unredirect(h *netlink.Handle) error {
	links, err := h.LinkList()
	if err != nil {
		return err
	}
	var problem error
	for _, l := range links {
		ours, err := redirected(h, l)
		if err == nil && ours {
			err = h.QdiscDel(ingress(l.Attrs().Index))
		}
		// Interfaces come and go meanwhile.
		if err := ignore(err, unix.ENODEV, unix.ENOENT, unix.EINVAL); err != nil {
			problem = errors.Join(problem, fmt.Errorf("qdisc of %s: %w", l.Attrs().Name, err))
		}
	}
	return problem
}

// redirected tells whether the interface has an ingress qdisc with our filter.
func redirected(h *netlink.Handle, l netlink.Link) (bool, error) {
	qdiscs, err := h.QdiscList(l)
	if err != nil {
		return false, err
	}
	for _, q := range qdiscs {
		if q.Type() != "ingress" {
			continue
		}
		filters, err := h.FilterList(l, ingressHandle)
		if err != nil {
			return false, err
		}
		for _, f := range filters {
			if f.Attrs().Priority == priority {
				return true, nil
			}
		}
	}
	return false, nil
}
