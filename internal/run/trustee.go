package run

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/tee/softtee"
)

// trusteePort is tried first, so that the same pod gives the same initdata again.
const trusteePort = 47991

// measurementName is the reference value of SNP launch measurements.
const measurementName = "snp_launch_measurement"

// unregistered is the predicted register that no launch is held to: it says how
// many CPUs and how much memory a TD has, which on hardware only its ACPI tables
// tell.
const unregistered = "rtmr_0"

// TrusteeOptions configure the embedded trustee.
type TrusteeOptions struct {
	// State is the directory it keeps its database, keys and authority in,
	// beside those of the software TEE.
	State string
	// SoftTEE, when not nil, has its roots configured as development roots,
	// and the default policy tolerates that its evidence is simulated.
	SoftTEE *softtee.Processor
	// Tenant is what Trustee.Admin administers, and Role the role it claims;
	// empty: the default tenant and every role.
	Tenant, Role string
	Logger       *slog.Logger
}

// Trustee is a trustee inside this process, on loopback.
type Trustee struct {
	// GuestURL is its URL as guests reach it, URL as the host does.
	GuestURL, URL string
	// RootPEM vouches for it.
	RootPEM []byte
	Admin   *admin.Client

	stop context.CancelFunc
	done chan error
}

// SoftTEERoot is the file in a state directory with the software TEE's root: what
// a trustee lists under tee.snp.development_roots to accept its evidence.
const SoftTEERoot = "softtee-root.pem"

// SoftTDXRoot is the file beside it with the root of the software TEE's TDX
// platform and its collateral: what a trustee lists under
// tee.tdx.development_roots.
const SoftTDXRoot = "softtee-tdx-root.pem"

// SoftTEE opens the software TEE of a state directory, and writes its roots
// beside it.
func SoftTEE(state string) (*softtee.Processor, error) {
	p, err := softtee.LoadOrCreate(filepath.Join(state, "softtee"), rand.Reader, time.Now())
	if err != nil {
		return nil, fmt.Errorf("software TEE: %w", err)
	}
	if err := writeRoots(state, p); err != nil {
		return nil, fmt.Errorf("software TEE: %w", err)
	}
	return p, nil
}

// writeRoots writes the roots' files unless they are there: another program may
// be reading them.
func writeRoots(state string, p *softtee.Processor) error {
	for name, text := range map[string][]byte{SoftTEERoot: p.RootPEM(), SoftTDXRoot: p.TDXRootPEM()} {
		file := filepath.Join(state, name)
		if have, err := os.ReadFile(file); err == nil && bytes.Equal(have, text) {
			continue
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// StartTrustee starts an embedded trustee.
func StartTrustee(ctx context.Context, o TrusteeOptions) (*Trustee, error) {
	c := config.Default()
	c.StateDir = filepath.Join(o.State, "trustee")
	c.TLS.Names = append(c.TLS.Names, HostName)
	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return nil, err
	}
	if o.SoftTEE != nil {
		if err := writeRoots(o.State, o.SoftTEE); err != nil {
			return nil, err
		}
		c.TEE.SNP.DevelopmentRoots = []string{filepath.Join(o.State, SoftTEERoot)}
		c.TEE.TDX.DevelopmentRoots = []string{filepath.Join(o.State, SoftTDXRoot)}
		c.Policy.AllowSimulated = true
	}
	// What it relaxes is said by whoever embeds it; its verdicts are read from
	// its state.
	logger := slog.New(slog.DiscardHandler)
	if o.Logger != nil && o.Logger.Enabled(ctx, slog.LevelDebug) {
		logger = o.Logger
	}
	c.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(trusteePort))
	server, err := trustee.New(ctx, trustee.Options{Config: c, Logger: logger})
	if err != nil {
		c.Listen = "127.0.0.1:0"
		if server, err = trustee.New(ctx, trustee.Options{Config: c, Logger: logger}); err != nil {
			return nil, fmt.Errorf("embedded trustee: %w", err)
		}
	}
	_, port, err := net.SplitHostPort(server.Addr())
	if err != nil {
		return nil, err
	}
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	t := &Trustee{
		GuestURL: "https://" + net.JoinHostPort(HostName, port), URL: "https://" + net.JoinHostPort("127.0.0.1", port),
		RootPEM: server.RootPEM(), stop: stop, done: make(chan error, 1),
	}
	go func() { t.done <- server.Run(runCtx) }()
	if t.Admin, err = admin.New(admin.Options{URL: t.URL, RootPEM: t.RootPEM, Key: server.AdminKey(), Subject: "coffer", Tenant: o.Tenant, Role: o.Role}); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// Close stops the trustee; its state stays.
func (t *Trustee) Close() error {
	if t.Admin != nil {
		t.Admin.Close()
	}
	t.stop()
	if err := <-t.done; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("embedded trustee: %w", err)
	}
	return nil
}

// RegisterMeasurement adds a measurement (hex) to the reference values of a
// name. inputs is the measure.Inputs or measure.TDXInputs document it was
// computed from. One that is there and counts stays as it is.
func RegisterMeasurement(ctx context.Context, c *admin.Client, name, digest string, inputs json.RawMessage, description string) error {
	have, err := c.ReferenceValue(ctx, name)
	if e, ok := errors.AsType[*kbs.StatusError](err); ok && e.Status == http.StatusNotFound {
		err = nil
	}
	if err != nil {
		return err
	}
	for _, e := range have.Entries {
		var value string
		if json.Unmarshal(e.Value, &value) == nil && value == digest && (e.Expires.IsZero() || time.Now().Before(e.Expires)) {
			return nil
		}
	}
	return c.AddReferenceValue(ctx, admin.ReferenceValue{Name: name, Values: []any{digest}, Inputs: inputs, Description: description})
}
