package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/ebitengine/purego"

	"github.com/coffer-project/coffer/tee/nvidia"
)

// Constants and structures of nvml.h (NVIDIA/go-nvml v0.13.3-0, pkg/nvml/nvml.h).
const (
	success         = 0
	driverNotLoaded = 9
	gpuNotFound     = 28

	uuidSize             = 80
	certChainSize        = 0x1000
	attestationChainSize = 0x1400
	reportSize           = 0x2000
	cecReportSize        = 0x1000
)

// gpuCertificate is nvmlConfComputeGpuCertificate_t. Without names are the members
// that are of no use here: certChainSize and certChain.
type gpuCertificate struct {
	_               uint32
	attestationSize uint32
	_               [certChainSize]byte
	attestation     [attestationChainSize]byte
}

// gpuReport is nvmlConfComputeGpuAttestationReport_t. Without names are the
// members about another processor (CEC) of the board.
type gpuReport struct {
	_      uint32
	size   uint32
	_      uint32
	nonce  [nvidia.NonceSize]byte
	report [reportSize]byte
	_      [cecReportSize]byte
}

// nvml are the functions of the library that are needed.
type nvml struct {
	init, shutdown func() int32
	count          func(n *uint32) int32
	handle         func(i uint32, handle *uintptr) int32
	uuid           func(handle uintptr, text *byte, size uint32) int32
	arch           func(handle uintptr, arch *uint32) int32
	certificate    func(handle uintptr, c *gpuCertificate) int32
	attest         func(handle uintptr, r *gpuReport) int32
	text           func(code int32) string
}

// open loads the library and initialises it. Where there is none, or no GPU that
// has a driver, the error wraps errNone.
func open(library string) (*nvml, error) {
	h, err := purego.Dlopen(library, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		// The dynamic linker names the file that is missing: this one, or one
		// that it needs, which is something else.
		if strings.HasPrefix(err.Error(), library+": cannot open shared object file: No such file or directory") {
			return nil, fmt.Errorf("%w: %w", errNone, err)
		}
		return nil, fmt.Errorf("load NVIDIA's library: %w", err)
	}
	n := &nvml{}
	for name, f := range map[string]any{
		"nvmlInit_v2": &n.init, "nvmlShutdown": &n.shutdown, "nvmlErrorString": &n.text, "nvmlDeviceGetCount_v2": &n.count,
		"nvmlDeviceGetHandleByIndex_v2": &n.handle, "nvmlDeviceGetUUID": &n.uuid, "nvmlDeviceGetArchitecture": &n.arch,
		"nvmlDeviceGetConfComputeGpuCertificate":       &n.certificate,
		"nvmlDeviceGetConfComputeGpuAttestationReport": &n.attest,
	} {
		symbol, err := purego.Dlsym(h, name)
		if err != nil {
			return nil, fmt.Errorf("%s: expected the function %s, which drivers from 535 have: %w", library, name, err)
		}
		purego.RegisterFunc(f, symbol)
	}
	switch code := n.init(); code {
	case driverNotLoaded, gpuNotFound:
		return nil, fmt.Errorf("%w: %w", errNone, n.check("nvmlInit", code))
	default:
		return n, n.check("nvmlInit", code)
	}
}

// check makes an error of a code.
func (n *nvml) check(function string, code int32) error {
	if code == success {
		return nil
	}
	return fmt.Errorf("%s: %s (NVML error %d)", function, n.text(code), code)
}

// gpu is one device.
type gpu struct {
	handle uintptr
	uuid   string
	arch   uint32
}

// gpus are all devices, at least one: else the error wraps errNone.
func (n *nvml) gpus() ([]gpu, error) {
	var count uint32
	if err := n.check("nvmlDeviceGetCount", n.count(&count)); err != nil {
		return nil, err
	}
	if count == 0 {
		return nil, fmt.Errorf("%w: the driver knows of none", errNone)
	}
	if count > nvidia.MaxDevices {
		return nil, fmt.Errorf("expected at most %d GPUs, got %d", nvidia.MaxDevices, count)
	}
	out := make([]gpu, count)
	for i := range out {
		g := &out[i]
		if err := n.check("nvmlDeviceGetHandleByIndex", n.handle(uint32(i), &g.handle)); err != nil {
			return nil, fmt.Errorf("GPU %d: %w", i, err)
		}
		var text [uuidSize]byte
		if err := n.check("nvmlDeviceGetUUID", n.uuid(g.handle, &text[0], uuidSize)); err != nil {
			return nil, fmt.Errorf("GPU %d: %w", i, err)
		}
		before, _, _ := bytes.Cut(text[:], []byte{0})
		g.uuid = string(before)
		if err := n.check("nvmlDeviceGetArchitecture", n.arch(g.handle, &g.arch)); err != nil {
			return nil, fmt.Errorf("GPU %d: %w", i, err)
		}
	}
	return out, nil
}

// chain is the certificate chain of the key that signs reports, in PEM.
func (n *nvml) chain(g gpu) ([]byte, error) {
	c := &gpuCertificate{}
	if err := n.check("nvmlDeviceGetConfComputeGpuCertificate", n.certificate(g.handle, c)); err != nil {
		return nil, err
	}
	if c.attestationSize > attestationChainSize {
		return nil, fmt.Errorf("attestation certificates: expected at most %d bytes, got %d", attestationChainSize, c.attestationSize)
	}
	return bytes.TrimRight(c.attestation[:c.attestationSize], "\x00"), nil
}

// report is the device's signed report over a nonce of 32 bytes.
func (n *nvml) report(g gpu, nonce []byte) ([]byte, error) {
	r := &gpuReport{}
	copy(r.nonce[:], nonce)
	if err := n.check("nvmlDeviceGetConfComputeGpuAttestationReport", n.attest(g.handle, r)); err != nil {
		return nil, err
	}
	if r.size > reportSize {
		return nil, fmt.Errorf("attestation report: expected at most %d bytes, got %d", reportSize, r.size)
	}
	return r.report[:r.size], nil
}
