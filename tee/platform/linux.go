package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure/azureattest"
	"github.com/coffer-project/coffer/tee/cca/ccaattest"
	"github.com/coffer-project/coffer/tee/snp/snpattest"
	"github.com/coffer-project/coffer/tee/tdx/tdxattest"
	"github.com/coffer-project/coffer/tee/tpm"
	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
)

// maxSign bounds what is read of a file that is a sign.
const maxSign = 256

// tpmEventLog is where the kernel shows the firmware's log (securityfs).
const tpmEventLog = "sys/kernel/security/tpm0/binary_bios_measurements"

// Machine is where signs are looked for. The zero value has none.
type Machine struct {
	// FS is the file system from the root on, without a leading slash.
	FS fs.FS
	// Getenv reads the environment.
	Getenv func(string) string
	// ConfigFS is the kernel's report interface; nil: there is none.
	ConfigFS configfsi.Client
	// TPM opens the machine's TPM; an error that is [tpmattest.ErrNoTPM] says
	// that it has none. Nil: it has none.
	TPM func() (transport.TPMCloser, error)
	// QuoteService connects to a TDX host's quote generation service; nil: it
	// has none.
	QuoteService tdxattest.Dial
	// RuntimeLog is the file of runtime events; empty: there is none.
	RuntimeLog string
}

// ThisMachine is the machine the program runs on.
func ThisMachine() Machine {
	m := Machine{FS: os.DirFS("/"), Getenv: os.Getenv, TPM: func() (transport.TPMCloser, error) { return tpmattest.Open(tpmattest.DefaultDevices()...) }}
	if client, err := linuxtsm.MakeClient(); err == nil {
		m.ConfigFS = client
	}
	return m
}

// BareTPM is a machine with a TPM of which nothing more is known.
func (m Machine) BareTPM() Candidate {
	devices := make([]string, 0, 2)
	for _, d := range tpmattest.DefaultDevices() {
		devices = append(devices, strings.TrimPrefix(d, "/"))
	}
	return Candidate{tee.TPM, m.exists(devices...), func(context.Context) (tee.Attester, error) {
		return m.overTPM(func(t transport.TPM) (tee.Attester, error) {
			return tpmattest.New(tpmattest.Options{TPM: t, CreateAK: true, EventLog: m.eventLog})
		})
	}}
}

// Hardware are the candidates whose evidence shows what was launched. What one
// call returns looks into the TPM and the kernel's report interface once.
func (m Machine) Hardware() []Candidate {
	paravisor, driver := sync.OnceValues(m.paravisor), sync.OnceValues(m.provider)
	azure := func(want tee.Name) Candidate {
		return Candidate{want, func(context.Context) (string, error) {
			got, err := paravisor()
			if err != nil || got != want {
				return "", err
			}
			return "a paravisor's report in the TPM", nil
		}, func(context.Context) (tee.Attester, error) {
			return m.overTPM(func(t transport.TPM) (tee.Attester, error) { return azureattest.New(azureattest.Options{TPM: t}) })
		}}
	}
	provider := func(want string) func(context.Context) (string, error) {
		return func(context.Context) (string, error) {
			got, err := driver()
			if err != nil || got != want {
				return "", err
			}
			return "configfs-tsm provider " + want, nil
		}
	}
	return []Candidate{
		{tee.TDX, first(provider("tdx_guest"), m.exists("dev/tdx_guest")), func(context.Context) (tee.Attester, error) {
			return tdxattest.New(tdxattest.Linux(m.QuoteService, m.RuntimeLog))
		}},
		{tee.SGX, first(m.env("OCCLUM"), m.holds("dev/attestation/attestation_type", "dcap")), nil},
		{tee.SNP, first(m.exists("sys/devices/platform/sev-guest", "dev/sev-guest"), provider("sev_guest")), func(context.Context) (tee.Attester, error) { return snpattest.New() }},
		{tee.CSV, m.exists("dev/csv-guest"), nil},
		{tee.CCA, provider("arm_cca_guest"), func(context.Context) (tee.Attester, error) { return ccaattest.New() }},
		{tee.SE, m.holds("sys/firmware/uv/prot_virt_guest", "1"), nil},
		azure(tee.AzureTDXVTPM),
		azure(tee.AzureSNPVTPM),
	}
}

// overTPM opens the TPM for an attester, which keeps it. Without an attester it
// is closed.
func (m Machine) overTPM(attester func(transport.TPM) (tee.Attester, error)) (tee.Attester, error) {
	if m.TPM == nil {
		return nil, tpmattest.ErrNoTPM
	}
	t, err := m.TPM()
	if err != nil {
		return nil, err
	}
	a, err := attester(t)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return a, nil
}

// paravisor returns which environment the TPM is in, "" for none.
func (m Machine) paravisor() (tee.Name, error) {
	if m.TPM == nil {
		return "", nil
	}
	t, err := m.TPM()
	if errors.Is(err, tpmattest.ErrNoTPM) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	name, err := azureattest.Detect(t)
	if errors.Is(err, azureattest.ErrNotAzure) {
		name, err = "", nil
	}
	if err := errors.Join(err, t.Close()); err != nil {
		return "", err
	}
	return name, nil
}

// eventLog reads the log of what the firmware measured into the TPM, nil where
// the kernel shows none. Files of securityfs have no size.
func (m Machine) eventLog() ([]byte, error) {
	if m.FS == nil {
		return nil, nil
	}
	f, err := m.FS.Open(tpmEventLog)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, tpm.MaxEventLog+1))
	if err == nil && len(b) > tpm.MaxEventLog {
		err = fmt.Errorf("/%s: expected at most %d bytes, got more", tpmEventLog, tpm.MaxEventLog)
	}
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return b, nil
}

// first tries signs in order.
func first(signs ...func(context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		for _, sign := range signs {
			if s, err := sign(ctx); s != "" || err != nil {
				return s, err
			}
		}
		return "", nil
	}
}

// exists is the sign of a file that is there.
func (m Machine) exists(names ...string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		for _, name := range names {
			if m.FS == nil {
				break
			}
			if _, err := fs.Stat(m.FS, name); err == nil {
				return path.Join("/", name), nil
			} else if !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
		return "", nil
	}
}

// holds is the sign of a file with that content.
func (m Machine) holds(name, content string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		if m.FS == nil {
			return "", nil
		}
		f, err := m.FS.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		defer func() { _ = f.Close() }()
		b, err := io.ReadAll(io.LimitReader(f, maxSign))
		if err != nil {
			return "", fmt.Errorf("/%s: %w", name, err)
		}
		if strings.TrimSpace(string(b)) != content {
			return "", nil
		}
		return path.Join("/", name), nil
	}
}

// env is the sign of a variable that is set.
func (m Machine) env(name string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		if m.Getenv == nil || m.Getenv(name) == "" {
			return "", nil
		}
		return "environment variable " + name, nil
	}
}

// provider returns the name of the driver behind the kernel's report interface,
// "" where no driver has registered: then the kernel makes no entry (Linux,
// Documentation/ABI/testing/configfs-tsm-report; drivers/virt/coco/tsm.c, ENXIO).
func (m Machine) provider() (string, error) {
	if m.ConfigFS == nil {
		return "", nil
	}
	entry, err := m.ConfigFS.MkdirTemp(path.Join(configfsi.TsmPrefix, "report"), "entry")
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("configfs-tsm: %w", err)
	}
	got, err := m.ConfigFS.ReadFile(path.Join(entry, "provider"))
	if err := errors.Join(err, m.ConfigFS.RemoveAll(entry)); err != nil {
		return "", fmt.Errorf("configfs-tsm: %w", err)
	}
	return strings.TrimSpace(string(got)), nil
}
