package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/platform"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/tee/softtee"
)

// Config is a sandbox to launch.
type Config struct {
	// ID is the machine's name: [A-Za-z0-9._-], at most 64. Empty: random.
	ID string
	// Image is the directory of the guest image.
	Image string
	TEE   Kind
	// Processor is the software TEE; needed when the kind is SoftTDX, or is or
	// may turn out to be Soft.
	Processor *softtee.Processor
	// Accelerator; hardware TEEs always use KVM.
	Accelerator accel.Mode
	VCPUs       int
	MemoryMiB   int
	// InitDataDigest is the digest of initdata, before fitting; nil for an
	// unsealed pod. It becomes HOST_DATA or MRCONFIGID.
	InitDataDigest []byte
	// Development puts coffer.development on the measured command line.
	Development bool
	// Firmware is a path, see LoadImage.
	Firmware string
	// Transport carries the agent protocol; empty is Serial.
	Transport Transport
	// NoNetwork leaves the network card out.
	NoNetwork bool
	// Network is the pod's network on the host; nil: the machine has the
	// emulator's user-mode network, or none (NoNetwork). Its taps must stay open
	// until Launch returns.
	Network *Network
	// Disks of the machine. An image's File must stay open until Launch returns.
	Disks []vmm.Disk
	// DiskSlots is how many disks can be attached while the machine runs (see
	// Sandbox.AttachDisk), at most vmm.MaxDiskSlots.
	DiskSlots int
	// Override is what the host changes beneath the manifest.
	Override Override
	// TEEPort, when not nil, wraps the software TEE's end of the port between
	// it and the guest: the host that carries the bytes sees them.
	TEEPort func(io.ReadWriter) io.ReadWriter

	// BlobCache, when not nil, answers the guest's requests for blobs of images.
	BlobCache BlobCache

	Logger *slog.Logger
	// ConsoleLine, when not nil, is called with every line of the guest's
	// console, safe to print. It must not block.
	ConsoleLine func(line string)
	// Progress, when not nil, is called when a stage of the launch begins.
	Progress func(Stage)
	// BootTimeout bounds the time from the machine's start to the agent's
	// answer. Zero: DefaultBootTimeout.
	BootTimeout time.Duration

	// QEMU is the emulator's name or path; empty is vmm.DefaultBinary.
	QEMU string
	// AccelCache is where the accelerator's verdict is kept, see accel.Options.
	AccelCache string
	// Facts are the host's; nil: they are looked up.
	Facts *platform.Facts
}

// Override lets a host launch something else than the image's manifest says.
// Any host can; here it serves demonstrations and tests of what then happens.
type Override struct {
	// AppendCmdline is appended to the command line after a space.
	AppendCmdline string
	// Initrd replaces the image's when not nil.
	Initrd []byte
	// HostData replaces the fitted initdata digest when not nil.
	HostData []byte
}

// Transport is what carries the agent protocol.
type Transport string

const (
	// Serial is a virtio-serial port over an inherited socket: it needs
	// nothing of the host.
	Serial Transport = "serial"
	// Vsock needs the host's /dev/vhost-vsock. It has not been run: no machine
	// with that device was at hand.
	Vsock Transport = "vsock"
)

// DefaultBootTimeout is generous: an emulated guest on a busy machine needs
// most of a minute.
const DefaultBootTimeout = 3 * time.Minute

// Stage of a launch, for progress display.
type Stage string

// Stages, in their order.
const (
	StageImage   Stage = "reading the guest image"
	StageAccel   Stage = "choosing the accelerator"
	StageMeasure Stage = "measuring the launch"
	StageBoot    Stage = "booting the virtual machine"
	StageAgent   Stage = "talking to the guest agent"
	StageReady   Stage = "ready"
)

// prepare fills in defaults and reports everything that is wrong.
func (c Config) prepare() (Config, error) {
	var problems []error
	if c.ID == "" {
		var id [6]byte
		_, _ = rand.Read(id[:]) // never fails (crypto/rand)
		c.ID = "coffer-" + hex.EncodeToString(id[:])
	}
	if c.Image == "" {
		problems = append(problems, errors.New("image: expected the directory of a guest image, got none (make one with: coffer guest build)"))
	}
	if c.VCPUs < 1 || c.VCPUs > vmm.MaxVCPUs {
		problems = append(problems, fmt.Errorf("vcpus: expected 1 to %d, got %d", vmm.MaxVCPUs, c.VCPUs))
	}
	if c.MemoryMiB < vmm.MinMemoryMiB || c.MemoryMiB > vmm.MaxMemoryMiB {
		problems = append(problems, fmt.Errorf("memory: expected %d to %d MiB, got %d", vmm.MinMemoryMiB, vmm.MaxMemoryMiB, c.MemoryMiB))
	}
	if c.Network != nil && (c.NoNetwork || len(c.Network.Cards) == 0 || c.Network.Guest == nil) {
		problems = append(problems, errors.New("network: expected cards and what the guest is told of them, or no network; got a part of it"))
	}
	if n := len(c.InitDataDigest); c.InitDataDigest != nil && n != 32 && n != 48 && n != 64 {
		problems = append(problems, fmt.Errorf("initdata digest: expected 32, 48 or 64 bytes, got %d", n))
	}
	switch c.Transport {
	case "":
		c.Transport = Serial
	case Serial:
	case Vsock:
		if facts := platform.Inspect(); facts.VhostVsock != nil {
			problems = append(problems, fmt.Errorf("transport vsock: %w", facts.VhostVsock))
		}
	default:
		problems = append(problems, fmt.Errorf("transport: expected serial or vsock, got %q", c.Transport))
	}
	if c.Logger == nil {
		problems = append(problems, errors.New("logger: expected one, got nil"))
	}
	if c.BootTimeout == 0 {
		c.BootTimeout = DefaultBootTimeout
	}
	if c.Progress == nil {
		c.Progress = func(Stage) {}
	}
	if c.Accelerator == "" {
		c.Accelerator = accel.Auto
	}
	if c.Facts == nil {
		facts := platform.Inspect()
		c.Facts = &facts
	}
	if len(problems) > 0 {
		return c, fmt.Errorf("sandbox %s: %w", c.ID, errors.Join(problems...))
	}
	return c, nil
}
