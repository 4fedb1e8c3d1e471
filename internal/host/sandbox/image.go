package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/tee/measure"
)

// MeasuredCPU is the CPU model of SNP guests, and the one the software TEE
// measures. (A software guest runs on whatever its accelerator offers: there
// is no VMSA that could hold it to the model.)
const MeasuredCPU = "EPYC-v4"

// Image is a guest image whose files have been compared with its manifest. They
// stay open until Close, for machines to start with.
type Image struct {
	Dir      string
	Manifest *manifest.Manifest
	Kernel   []byte
	Initrd   []byte
	// Firmware is the machine's, and FirmwarePath where it was read.
	Firmware     []byte
	FirmwarePath string

	kernel, initrd, firmware imageFile
}

// LoadImage reads the image in dir for a kind other than Auto. firmware is a
// path; empty is the image's own or the host's SeaBIOS for software guests,
// and an error for hardware, whose firmware the user has to bring. The image is
// to be closed.
func LoadImage(dir string, kind Kind, firmware string) (*Image, error) {
	m, err := manifest.Load(dir)
	if err != nil {
		return nil, err
	}
	i := &Image{Dir: dir, Manifest: m}
	if err := i.open(kind, firmware); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, nil
}

func (i *Image) open(kind Kind, firmware string) error {
	var err error
	if i.kernel, i.Kernel, err = i.listed(i.Manifest.Kernel); err != nil {
		return err
	}
	if i.initrd, i.Initrd, err = i.listed(i.Manifest.Initrd.File); err != nil {
		return err
	}
	switch {
	case firmware != "":
		i.FirmwarePath = firmware
	case kind.Hardware():
		return fmt.Errorf("firmware: a %s guest needs an OVMF built for it, and none was given (name it with --firmware)", kind)
	case i.Manifest.Firmware != nil:
		i.FirmwarePath = filepath.Join(i.Dir, i.Manifest.Firmware.Name)
		i.firmware, i.Firmware, err = i.listed(*i.Manifest.Firmware)
		return err
	default:
		if i.FirmwarePath, err = vmm.FindSeaBIOS(); err != nil {
			return err
		}
	}
	i.firmware, i.Firmware, err = readFirmware(i.FirmwarePath)
	return err
}

// listed opens and reads a file of the manifest.
func (i *Image) listed(f manifest.File) (imageFile, []byte, error) {
	file, err := f.Open(i.Dir)
	if err != nil {
		return imageFile{}, nil, err
	}
	held, err := hold(file)
	if err != nil {
		return imageFile{}, nil, err
	}
	data, err := f.Content(file)
	return held, data, err
}

func readFirmware(path string) (held imageFile, data []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return held, nil, fmt.Errorf("firmware: %w", err)
	}
	if held, err = hold(f); err != nil {
		return held, nil, fmt.Errorf("firmware: %w", err)
	}
	data, err = io.ReadAll(io.LimitReader(f, measure.MaxFirmware+1))
	switch {
	case err != nil:
		err = fmt.Errorf("firmware: %w", err)
	case len(data) > measure.MaxFirmware:
		err = fmt.Errorf("firmware %s: expected at most %d bytes, got more", path, measure.MaxFirmware)
	}
	return held, data, err
}

// Cmdline is the kernel command line of a launch: the image's, then what
// tells the guest which TEE it has. development lets a guest run without
// evidence; it is measured like the rest.
func Cmdline(base string, kind Kind, development bool) string {
	words := []string{base}
	switch kind {
	case Soft, SoftTDX:
		words = append(words, "coffer.tee="+string(kind))
	case None:
		words = append(words, "coffer.tee=none")
		development = true // such a guest starts in no other way
	default:
		words = append(words, "coffer.tee=auto")
	}
	if development {
		words = append(words, "coffer.development")
	}
	return strings.Join(words, " ")
}

// Launch is what a launch of the image is measured by.
func (i *Image) Launch(kind Kind, vcpus int, development bool) measure.Launch {
	return measure.Launch{
		Firmware: i.Firmware, Kernel: i.Kernel, Initrd: i.Initrd,
		Cmdline: Cmdline(i.Manifest.Cmdline, kind, development),
		VCPUs:   vcpus, VCPUModel: MeasuredCPU,
	}
}

// TDXLaunch is l as a TD with that much memory is measured by.
func TDXLaunch(l measure.Launch, memoryMiB int) measure.TDXLaunch {
	return measure.TDXLaunch{
		Firmware: l.Firmware, Kernel: l.Kernel, Initrd: l.Initrd, Cmdline: l.Cmdline, VCPUs: l.VCPUs, Memory: uint64(max(memoryMiB, 0)) << 20,
	}
}

// Explain names the inputs in which a launch differs from what the image's
// manifest says: why a measurement is not the expected one.
func Explain(launched, expected measure.Inputs) []measure.Change {
	return measure.Diff(expected, launched)
}
