package vmm

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/coffer-project/coffer/internal/host/qmp"
)

// MaxDiskSlots bounds the disks that are attached at a time to a running
// machine: the slots are the functions of one device.
const MaxDiskSlots = 8

// slotDevice is where the slots are on the board's bus: the last number that
// no device of the board has.
const slotDevice = "1e"

// addSlots adds PCI Express ports without a device, in which the guest finds
// what is plugged in.
func (m *Machine) addSlots(p *plan) {
	for i := range m.DiskSlots {
		port := []string{"id", slotName(i), "bus", "pcie.0", "addr", slotDevice + "." + strconv.Itoa(i), "chassis", strconv.Itoa(i + 1)}
		if i == 0 {
			port = append(port, "multifunction", "on")
		}
		p.add("-device", options("pcie-root-port", port...))
	}
}

func slotName(i int) string { return "slot" + strconv.Itoa(i) }

// hotDisk is a disk that was attached to the running machine.
type hotDisk struct {
	serial string
	// slot is the port's number, and id the name of device and block node.
	slot int
	id   string
	// busy: it is being attached or detached.
	busy bool
	// deleted has what came of a request to remove the device, while there is
	// one: true when it is gone, false when the guest does not let go.
	deleted chan bool
}

// slots are the machine's ports for disks.
type slots struct {
	mu    sync.Mutex
	fixed []string // serial numbers the machine was started with
	disks []*hotDisk
	size  int
	count int // of disks ever attached, for names that are never used again
}

func newSlots(m *Machine) *slots {
	s := &slots{size: m.DiskSlots}
	for _, d := range m.Disks {
		s.fixed = append(s.fixed, d.Serial)
	}
	return s
}

// take reserves a port for a disk.
func (s *slots) take(serial string) (*hotDisk, error) {
	if !serialRE.MatchString(serial) {
		return nil, fmt.Errorf("disk: serial: expected 1 to 20 characters of [A-Za-z0-9_-], got %q", serial)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.fixed, serial) || s.find(serial) != nil {
		return nil, fmt.Errorf("disk %s: the machine has a disk with that serial number already", serial)
	}
	used := make([]bool, s.size)
	for _, d := range s.disks {
		used[d.slot] = true
	}
	free := slices.Index(used, false)
	if free < 0 {
		return nil, fmt.Errorf("disk %s: the machine takes %d disks while it runs, and has them (use fewer block volumes in the pod)", serial, s.size)
	}
	d := &hotDisk{serial: serial, slot: free, id: "hot" + strconv.Itoa(s.count), busy: true}
	s.count++
	s.disks = append(s.disks, d)
	return d, nil
}

// release ends the reservation, or the work on a disk that stays.
func (s *slots) release(d *hotDisk, stays bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.busy = false
	if !stays {
		s.disks = slices.DeleteFunc(s.disks, func(other *hotDisk) bool { return other == d })
	}
}

// hold finds an attached disk and keeps others from working on it.
func (s *slots) hold(serial string) (*hotDisk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.find(serial)
	switch {
	case d == nil && slices.Contains(s.fixed, serial):
		return nil, fmt.Errorf("disk %s: the machine was started with it and keeps it", serial)
	case d == nil:
		return nil, fmt.Errorf("disk %s: %w", serial, ErrNoDisk)
	case d.busy:
		return nil, fmt.Errorf("disk %s: it is being attached or detached", serial)
	}
	d.busy, d.deleted = true, make(chan bool, 1)
	return d, nil
}

func (s *slots) find(serial string) *hotDisk {
	if i := slices.IndexFunc(s.disks, func(d *hotDisk) bool { return d.serial == serial }); i >= 0 {
		return s.disks[i]
	}
	return nil
}

// event is called by the monitor's reader.
func (s *slots) event(e qmp.Event) {
	var data struct {
		Device string `json:"device"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.disks {
		if d.id != data.Device || d.deleted == nil {
			continue
		}
		select {
		case d.deleted <- e.Name == "DEVICE_DELETED":
		default: // the first word counts
		}
	}
}
