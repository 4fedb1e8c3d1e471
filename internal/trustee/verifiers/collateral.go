package verifiers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee/collateral"
)

// OpenCollateral returns the source of collateral that a configuration
// describes; the caller closes it. What happens is logged, what is fetched or
// goes wrong at level info and above.
func OpenCollateral(c config.Collateral, stateDir string, now func() time.Time, logger *slog.Logger, count func(collateral.Event)) (*collateral.Client, error) {
	// Software TEEs bring what they need; the vendors' services have nothing
	// under their roots.
	checks, err := collateral.DefaultChecks(collateral.DevelopmentRoots{})
	if err != nil {
		return nil, fmt.Errorf("collateral: %w", err)
	}
	o := collateral.Options{
		Dir: c.Dir, Offline: c.Offline, Update: collateral.Update(c.Update), Now: now, MaxAge: c.MaxAge.D(), Timeout: c.Timeout.D(),
		Endpoints: collateral.Endpoints{KDS: c.KDS, PCS: c.PCS, RIM: c.RIM, OCSP: c.OCSP, Hygon: c.Hygon},
		Checks:    checks,
		OnEvent: func(e collateral.Event) {
			log(logger, e)
			if count != nil {
				count(e)
			}
		},
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(stateDir, "collateral")
	}
	for _, dir := range c.Stores {
		s, err := collateral.Open(dir, o.Checks)
		if err != nil {
			return nil, fmt.Errorf("collateral.stores: %w", err)
		}
		for _, f := range s.Findings() {
			if f.Status == collateral.Refused || f.Status == collateral.Ignored {
				logger.Warn("a file in a store of collateral is not used", "file", f.File, "status", string(f.Status), "reason", f.Reason)
			}
		}
		o.Stores = append(o.Stores, s)
	}
	client, err := collateral.New(o)
	if err != nil {
		return nil, fmt.Errorf("collateral: %w", err)
	}
	return client, nil
}

// SecretSize is the length of Options.Secret in bytes.
const SecretSize = 32

// Check reports everything that keeps a configuration's verifiers from being
// built. It fetches, creates and changes nothing.
func Check(c config.TEE, source config.Collateral, now func() time.Time) error {
	checks, err := collateral.DefaultChecks(collateral.DevelopmentRoots{})
	if err != nil {
		return fmt.Errorf("collateral: %w", err)
	}
	var problems []error
	for _, dir := range source.Stores {
		if _, err := collateral.Open(dir, checks); err != nil {
			problems = append(problems, fmt.Errorf("collateral.stores: %w", err))
		}
	}
	client, err := collateral.New(collateral.Options{Offline: true, Checks: checks, Now: now})
	if err != nil {
		return fmt.Errorf("collateral: %w", err)
	}
	// No challenge is made here: any secret will do.
	_, err = New(Options{TEE: c, Collateral: client, Secret: secret.New(make([]byte, SecretSize)), Now: now})
	return errors.Join(append(problems, err, client.Close())...)
}

func log(logger *slog.Logger, e collateral.Event) {
	level := slog.LevelDebug
	switch e.Type {
	case collateral.EventStored:
		level = slog.LevelInfo
	case collateral.EventFailed, collateral.EventStale, collateral.EventThrottled, collateral.EventDamaged, collateral.EventNotStored:
		level = slog.LevelWarn
	default:
	}
	attrs := []any{"event", string(e.Type), "item", e.Item.String()}
	if e.Source != "" {
		attrs = append(attrs, "source", e.Source)
	}
	if e.Wait > 0 {
		attrs = append(attrs, "wait", e.Wait)
	}
	if e.Err != nil {
		attrs = append(attrs, "error", e.Err)
	}
	logger.Log(context.Background(), level, "collateral", attrs...)
}
