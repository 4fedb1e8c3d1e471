// Package mapper makes and removes device-mapper devices through the kernel's
// ioctls (linux/dm-ioctl.h, interface 4.0.0).
//
// It is our own because the tables of encrypted disks hold keys: a table is
// handed over as bytes that the caller clears, the copy made here is cleared
// after use, and the kernel is told to clear its copies (DM_SECURE_DATA_FLAG).
package mapper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and flags of linux/dm-ioctl.h.
const (
	cmdCreate  = 3
	cmdRemove  = 4
	cmdSuspend = 6 // and resume
	cmdLoad    = 9

	flagSecureData = 1 << 15

	ioctlType  = 0xfd
	headerSize = 312 // struct dm_ioctl
	specSize   = 40  // struct dm_target_spec
	nameSize   = 128
)

// controlPath is where devtmpfs puts the node.
const controlPath = "/dev/mapper/control"

// maxTable bounds a table in bytes.
const maxTable = 16 << 10

// Target is one line of a table.
type Target struct {
	// Start and Length in sectors of 512 bytes.
	Start, Length uint64
	// Type is the target's name, for example crypt.
	Type string
	// Params is what comes after it. It may hold a key, and is not printed.
	Params []byte
}

// Device is a mapped device.
type Device struct {
	// Name is the device-mapper's.
	Name string
	// Major and Minor are its number.
	Major, Minor uint32
}

// Path is the device's node in devtmpfs.
func (d Device) Path() string { return fmt.Sprintf("/dev/dm-%d", d.Minor) }

// Number is the device in a table of another one.
func (d Device) Number() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// Control is an open connection to the device-mapper. It is safe for
// concurrent use.
type Control struct{ f *os.File }

// Open opens the device-mapper, whose driver must be loaded.
func Open() (*Control, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("device-mapper: %w", err)
	}
	return &Control{f}, nil
}

// Close closes the connection. Devices stay.
func (c *Control) Close() error { return c.f.Close() }

// Create makes a device of the targets and starts it. When it fails nothing is
// left. The kernel says why a table is wrong in its log only.
func (c *Control) Create(ctx context.Context, name string, targets ...Target) (Device, error) {
	header, err := c.call(cmdCreate, name, 0, nil)
	if err != nil {
		return Device{}, fmt.Errorf("device-mapper: create %s: %w", name, err)
	}
	dev := binary.LittleEndian.Uint64(header[40:])
	d := Device{Name: name, Major: unix.Major(dev), Minor: unix.Minor(dev)}
	if err := c.load(name, targets); err != nil {
		return Device{}, errors.Join(fmt.Errorf("device-mapper: table of %s: %w (the kernel's log says why)", name, err), c.Remove(ctx, d))
	}
	if _, err := c.call(cmdSuspend, name, 0, nil); err != nil {
		return Device{}, errors.Join(fmt.Errorf("device-mapper: start %s: %w", name, err), c.Remove(ctx, d))
	}
	return d, nil
}

// Limits of the wait for a device that somebody still looks at.
const (
	busyStep  = 20 * time.Millisecond
	busyLimit = 5 * time.Second
)

// Remove removes a device. One that is in use is asked for again for some time:
// the kernel itself may look at a new device for a moment.
func (c *Control) Remove(ctx context.Context, d Device) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), busyLimit)
	defer cancel()
	tick := time.NewTicker(busyStep)
	defer tick.Stop()
	for {
		_, err := c.call(cmdRemove, d.Name, 0, nil)
		if err == nil || errors.Is(err, unix.ENXIO) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("device-mapper: remove %s: %w", d.Name, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("device-mapper: remove %s: %w", d.Name, err)
		}
	}
}

// load hands the table over.
func (c *Control) load(name string, targets []Target) error {
	table, err := table(targets)
	if err != nil {
		return err
	}
	defer clear(table)
	_, err = c.call(cmdLoad, name, uint32(len(targets)), table)
	return err
}

// table is what follows the header of DM_TABLE_LOAD: for each target its
// struct, its parameters with a final NUL, and padding to eight bytes.
func table(targets []Target) ([]byte, error) {
	size := 0
	for _, t := range targets {
		if len(t.Type) > 15 {
			return nil, fmt.Errorf("target %q: at most 15 characters", t.Type)
		}
		size += (specSize + len(t.Params) + 1 + 7) &^ 7
		if size > maxTable {
			return nil, fmt.Errorf("a table of more than %d bytes", maxTable)
		}
	}
	out := make([]byte, size)
	at := out
	for _, t := range targets {
		next := (specSize + len(t.Params) + 1 + 7) &^ 7
		binary.LittleEndian.PutUint64(at, t.Start)
		binary.LittleEndian.PutUint64(at[8:], t.Length)
		binary.LittleEndian.PutUint32(at[20:], uint32(next))
		copy(at[24:], t.Type)
		copy(at[specSize:], t.Params)
		at = at[next:]
	}
	return out, nil
}

// call issues a command and returns the header as the kernel left it.
func (c *Control) call(cmd uintptr, name string, targets uint32, data []byte) ([]byte, error) {
	if len(name) >= nameSize {
		return nil, fmt.Errorf("name %q: at most %d characters", name, nameSize-1)
	}
	buf := make([]byte, headerSize+len(data))
	defer clear(buf[headerSize:])
	le := binary.LittleEndian
	le.PutUint32(buf, 4) // version 4.0.0
	le.PutUint32(buf[12:], uint32(len(buf)))
	le.PutUint32(buf[16:], headerSize)
	le.PutUint32(buf[20:], targets)
	le.PutUint32(buf[28:], flagSecureData)
	copy(buf[48:], name)
	copy(buf[headerSize:], data)
	const dirRW = 3 // _IOC_READ | _IOC_WRITE
	request := uintptr(dirRW<<30 | headerSize<<16 | ioctlType<<8)
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.f.Fd(), request|cmd, uintptr(unsafe.Pointer(&buf[0])))
		switch errno {
		case 0:
			return buf[:headerSize], nil
		case unix.EINTR:
		default:
			return nil, errno
		}
	}
}
