// Package nodeagent is what the node's DaemonSet runs: it installs the runtime,
// labels the node with what it can do, keeps both as they should be, and removes
// them when the DaemonSet is deleted. All the while it has what shims say of
// their pods posted (internal/install/podevents).
//
// A pod of a DaemonSet also ends when it is replaced, when its node is drained or
// restarted: then the runtime has to stay, under the pods that use it. So the end
// asks the API server whether the DaemonSet is still wanted. Without an answer
// nothing is removed.
package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/install"
	"github.com/coffer-project/coffer/internal/install/doctor"
	"github.com/coffer-project/coffer/internal/install/kubeapi"
)

// API is the part of the Kubernetes API that the agent needs; *kubeapi.Client
// implements it.
type API interface {
	Label(ctx context.Context, node string, set map[string]string, remove []string) error
	Wanted(ctx context.Context, namespace, name string) (bool, error)
}

// Agent is one node's.
type Agent struct {
	// Install and Uninstall do that; the first says whether containerd has to be
	// restarted.
	Install   func(context.Context) (restart bool, units []string, err error)
	Uninstall func(context.Context) (restart bool, units []string, err error)
	// Restart restarts containerd; nil: that is left to somebody else.
	Restart func(ctx context.Context, units []string) error
	// Inspect finds out what the node can do.
	Inspect func(context.Context) (*doctor.Report, error)
	// Beside, when not nil, is what Run does all the while; it ends with its
	// context.
	Beside func(context.Context)

	API API
	// Node is the node's name; Namespace and DaemonSet name the agent's own set.
	Node, Namespace, DaemonSet string
	// Every is how often the node is looked at again.
	Every time.Duration
	// Grace bounds the end.
	Grace  time.Duration
	Logger *slog.Logger
}

// Run installs and labels, looks again from time to time until ctx ends, and
// then uninstalls if the DaemonSet is gone. A first installation that fails ends
// it with the error; later ones are logged, and tried again.
func (a *Agent) Run(ctx context.Context) error {
	defer a.beside(ctx)()
	if err := a.Once(ctx); err != nil {
		if ctx.Err() == nil {
			return err
		}
		return errors.Join(err, a.end(ctx))
	}
	tick := time.NewTicker(a.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return a.end(ctx)
		case <-tick.C:
			if err := a.Once(ctx); err != nil && ctx.Err() == nil {
				a.Logger.ErrorContext(ctx, "the node is not as it should be", "error", err)
			}
		}
	}
}

// beside starts what is done all the while. The function that is returned ends
// it.
func (a *Agent) beside(ctx context.Context) func() {
	if a.Beside == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { a.Beside(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

// Once installs what is missing and labels the node. Where something fails, the
// node loses its labels.
func (a *Agent) Once(ctx context.Context) error {
	restart, units, err := a.Install(ctx)
	if err != nil {
		// Pods must not be sent here.
		return errors.Join(err, a.API.Label(ctx, a.Node, nil, doctor.LabelNames()))
	}
	if restart {
		if err := a.restart(ctx, units); err != nil {
			return errors.Join(err, a.API.Label(ctx, a.Node, nil, doctor.LabelNames()))
		}
	}
	report, err := a.Inspect(ctx)
	if err != nil {
		return errors.Join(err, a.API.Label(ctx, a.Node, nil, doctor.LabelNames()))
	}
	for _, c := range report.Checks {
		a.Logger.InfoContext(ctx, "checked", "what", c.Name, "level", string(c.Level), "detail", c.Detail, "help", c.Help)
	}
	labels := report.Labels()
	if err := a.API.Label(ctx, a.Node, labels, doctor.LabelNames()); err != nil {
		return err
	}
	a.Logger.InfoContext(ctx, "the node is ready", "node", a.Node, "labels", labels)
	return nil
}

func (a *Agent) restart(ctx context.Context, units []string) error {
	if a.Restart == nil {
		a.Logger.WarnContext(ctx, "containerd reads its configuration when it is restarted, which is left to you", "units", units)
		return nil
	}
	return a.Restart(ctx, units)
}

// end uninstalls if the DaemonSet is gone.
func (a *Agent) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.Grace)
	defer cancel()
	if wanted, err := a.wanted(ctx); wanted {
		a.Logger.InfoContext(ctx, "the runtime stays: its DaemonSet is not deleted", "daemonset", a.DaemonSet, "error", err)
		return nil
	}
	// First the labels, so that no more pods come.
	labels := a.API.Label(ctx, a.Node, nil, doctor.LabelNames())
	if labels != nil {
		labels = fmt.Errorf("the node keeps its labels %v: %w", doctor.LabelNames(), labels)
	}
	restart, units, err := a.uninstall(ctx)
	if err != nil && !errors.Is(err, install.ErrNotInstalled) {
		return errors.Join(labels, err)
	}
	a.Logger.InfoContext(ctx, "the runtime was removed: its DaemonSet was deleted", "daemonset", a.DaemonSet)
	if restart {
		return errors.Join(labels, a.restart(ctx, units))
	}
	return labels
}

// uninstall waits for pods of the runtime to end.
func (a *Agent) uninstall(ctx context.Context) (restart bool, units []string, err error) {
	for {
		restart, units, err := a.Uninstall(ctx)
		if !errors.Is(err, install.ErrInUse) {
			return restart, units, err
		}
		a.Logger.WarnContext(ctx, "the runtime is still in use", "error", err)
		select {
		case <-ctx.Done():
			return false, nil, fmt.Errorf("the runtime stays on the node: %w", err)
		case <-time.After(a.Grace / 20):
		}
	}
}

// wanted asks until there is an answer, for a quarter of the time. A service
// account that does not exist all the while is one: it is deleted with the
// DaemonSet, as when the namespace is.
func (a *Agent) wanted(ctx context.Context) (bool, error) {
	for start := time.Now(); ; {
		wanted, err := a.API.Wanted(ctx, a.Namespace, a.DaemonSet)
		if err == nil {
			return wanted, nil
		}
		select {
		case <-ctx.Done():
			return true, err
		case <-time.After(a.Grace / 20):
		}
		if time.Since(start) >= a.Grace/4 {
			return !errors.Is(err, kubeapi.ErrUnauthorized), err
		}
	}
}
