package portforward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/network"
)

// Places of the listeners in the map of sockets.
const (
	listenerV4 = iota
	listenerV6
	listeners
)

// Fields of struct bpf_sk_lookup (linux/bpf.h), by their offsets.
const (
	fieldFamily   = 8
	fieldProtocol = 12
	fieldLocalIP4 = 40
	fieldLocalIP6 = 44
)

// passes is SK_PASS (linux/bpf.h): the lookup goes on, with the socket that was
// assigned if there is one.
const passes = 1

// closers are closed in order.
type closers []io.Closer

func (c closers) Close() error {
	var errs []error
	for _, x := range c {
		errs = append(errs, x.Close())
	}
	return errors.Join(errs...)
}

// listen makes the listeners inside the namespace and has the kernel choose them.
func (f *Forwarder) listen(ns *os.File) error {
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Name: "coffer_fwd", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: listeners})
	if err != nil {
		return lacking("map of sockets", err)
	}
	defer sockets.Close() //nolint:errcheck // the program has it
	for key, address := range []string{listenerV4: "127.0.0.1:0", listenerV6: "[::1]:0"} {
		l, err := listenInside(ns, address)
		if key == listenerV6 && unavailable(err) {
			continue // a node without IPv6
		}
		if err != nil {
			return fmt.Errorf("listen at %s: %w", address, err)
		}
		f.listeners = append(f.listeners, l)
		if err := put(sockets, uint32(key), l); err != nil {
			return lacking("listener in a map of sockets", err)
		}
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "coffer_fwd", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "Dual MIT/GPL", Instructions: instructions(sockets.FD()),
	})
	if err != nil {
		return lacking("program for the lookup of sockets", err)
	}
	hook, err := link.AttachNetNs(int(ns.Fd()), program)
	if err != nil {
		return errors.Join(lacking("attach to the lookup of sockets", err), program.Close())
	}
	f.hook = closers{hook, program}
	return nil
}

// lacking explains an error of a kernel that cannot do it.
func lacking(what string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w (it takes the capabilities CAP_BPF and CAP_NET_ADMIN)", what, err)
	}
	return fmt.Errorf("%s: %w (it takes Linux 5.9 with CONFIG_BPF_SYSCALL)", what, err)
}

func put(sockets *ebpf.Map, key uint32, l *net.TCPListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var put error
	err = raw.Control(func(fd uintptr) { put = sockets.Put(key, uint64(fd)) })
	return errors.Join(err, put)
}

// instructions choose a listener for TCP to 127.0.0.0/8 and ::1, and leave
// everything else alone. Addresses are in network order, and compared as such.
func instructions(sockets int) asm.Instructions {
	const ctx, key, socket = asm.R6, asm.R7, asm.R8
	return asm.Instructions{
		asm.Mov.Reg(ctx, asm.R1),
		asm.LoadMem(asm.R1, ctx, fieldProtocol, asm.Word),
		asm.JNE.Imm(asm.R1, unix.IPPROTO_TCP, "pass"),
		asm.LoadMem(asm.R1, ctx, fieldFamily, asm.Word),
		asm.JEq.Imm(asm.R1, unix.AF_INET6, "six"),
		asm.JNE.Imm(asm.R1, unix.AF_INET, "pass"),

		asm.Mov.Imm(key, listenerV4),
		asm.LoadMem(asm.R1, ctx, fieldLocalIP4, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Word),
		asm.RSh.Imm(asm.R1, 24),
		asm.JNE.Imm(asm.R1, 127, "pass"),
		asm.Ja.Label("choose"),

		asm.Mov.Imm(key, listenerV6).WithSymbol("six"),
		asm.LoadMem(asm.R1, ctx, fieldLocalIP6, asm.Word),
		asm.LoadMem(asm.R2, ctx, fieldLocalIP6+4, asm.Word),
		asm.Or.Reg(asm.R1, asm.R2),
		asm.LoadMem(asm.R2, ctx, fieldLocalIP6+8, asm.Word),
		asm.Or.Reg(asm.R1, asm.R2),
		asm.JNE.Imm(asm.R1, 0, "pass"),
		asm.LoadMem(asm.R1, ctx, fieldLocalIP6+12, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Word),
		asm.JNE.Imm(asm.R1, 1, "pass"),

		asm.StoreMem(asm.RFP, -4, key, asm.Word).WithSymbol("choose"),
		asm.LoadMapPtr(asm.R1, sockets),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(socket, asm.R0),
		asm.Mov.Reg(asm.R1, ctx),
		asm.Mov.Reg(asm.R2, socket),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, socket),
		asm.FnSkRelease.Call(),

		asm.Mov.Imm(asm.R0, passes).WithSymbol("pass"),
		asm.Return(),
	}
}

// listenInside listens in a namespace.
func listenInside(ns *os.File, address string) (*net.TCPListener, error) {
	var l net.Listener
	err := network.Inside(ns, func() (err error) {
		var c net.ListenConfig
		// The listener must not become one of multipath TCP: a map of sockets takes
		// plain ones only.
		c.SetMultipathTCP(false)
		l, err = c.Listen(context.Background(), "tcp", address)
		return err
	})
	if err != nil {
		return nil, err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a listener of type %T", l), l.Close())
	}
	return tcp, nil
}

// unavailable tells that there is no such address here.
func unavailable(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
}
