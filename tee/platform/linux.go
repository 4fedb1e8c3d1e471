package platform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure/azureattest"
	"github.com/coffer-project/coffer/tee/cca/ccaattest"
	"github.com/coffer-project/coffer/tee/snp/snpattest"
	"github.com/coffer-project/coffer/tee/tdx/tdxattest"
	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
)

// maxSign bounds what is read of a file that is a sign.
const maxSign = 256

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

// Candidates are the environments that m may be, in the order in which they
// are looked for, with a bare TPM last: pass the list through [Only], or leave
// the TPM off with [Hardware].
func (m Machine) Candidates() []Candidate {
	return append(m.Hardware(), Candidate{tee.TPM, m.exists("dev/tpmrm0", "dev/tpm0", "dev/tpm1", "dev/tpm2"), func(context.Context) (tee.Attester, error) {
		t, err := m.TPM()
		if err != nil {
			return nil, err
		}
		return tpmattest.New(tpmattest.Options{TPM: t, CreateAK: true})
	}})
}

// Hardware are the candidates whose evidence shows what was launched.
func (m Machine) Hardware() []Candidate {
	azure := func(want tee.Name) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) {
			got, err := m.paravisor(ctx)
			if err != nil || got != want {
				return "", err
			}
			return "a paravisor's report in the TPM", nil
		}
	}
	azureAttester := func(context.Context) (tee.Attester, error) {
		t, err := m.TPM()
		if err != nil {
			return nil, err
		}
		return azureattest.New(azureattest.Options{TPM: t})
	}
	return []Candidate{
		{tee.TDX, first(m.provider("tdx_guest"), m.exists("dev/tdx_guest")), func(context.Context) (tee.Attester, error) {
			return tdxattest.New(tdxattest.Linux(m.QuoteService, m.RuntimeLog))
		}},
		{tee.SGX, first(m.env("OCCLUM"), m.holds("dev/attestation/attestation_type", "dcap")), nil},
		{tee.AzureTDXVTPM, azure(tee.AzureTDXVTPM), azureAttester},
		{tee.AzureSNPVTPM, azure(tee.AzureSNPVTPM), azureAttester},
		{tee.SNP, first(m.exists("sys/devices/platform/sev-guest", "dev/sev-guest"), m.provider("sev_guest")), func(context.Context) (tee.Attester, error) { return snpattest.New() }},
		{tee.CSV, m.exists("dev/csv-guest"), nil},
		{tee.CCA, m.provider("arm_cca_guest"), func(context.Context) (tee.Attester, error) { return ccaattest.New() }},
		{tee.SE, m.holds("sys/firmware/uv/prot_virt_guest", "1"), nil},
	}
}

// paravisor returns which environment the TPM is in, "" for none.
func (m Machine) paravisor(context.Context) (tee.Name, error) {
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
	return name, errors.Join(err, t.Close())
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
		b := make([]byte, maxSign)
		n, _ := f.Read(b) // what cannot be read is not the content
		if strings.TrimSpace(string(b[:n])) != content {
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

// provider is the sign of the driver behind the kernel's report interface.
func (m Machine) provider(want string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		if m.ConfigFS == nil {
			return "", nil
		}
		// An entry can only be made where a driver has registered.
		r, err := report.CreateOpenReport(m.ConfigFS)
		if err != nil {
			return "", nil //nolint:nilerr // no driver: no sign
		}
		got, err := r.ReadOption("provider")
		if err := errors.Join(err, r.Destroy()); err != nil {
			return "", fmt.Errorf("configfs-tsm: %w", err)
		}
		if strings.TrimSpace(string(got)) != want {
			return "", nil
		}
		return "configfs-tsm provider " + want, nil
	}
}
