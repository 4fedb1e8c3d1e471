package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/install"
	"github.com/coffer-project/coffer/internal/install/doctor"
	"github.com/coffer-project/coffer/internal/install/kubeapi"
	"github.com/coffer-project/coffer/internal/install/nodeagent"
	"github.com/coffer-project/coffer/internal/install/podevents"
)

// nodeAgentFlags are those of the DaemonSet.
type nodeAgentFlags struct {
	label, stay     bool
	node, daemonSet string
	every, grace    time.Duration
}

func (n *nodeAgentFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&n.label, "label-node", false, "label the node in Kubernetes with what it can do; from within the cluster")
	f.BoolVar(&n.stay, "stay", false, "keep it installed and labelled until --daemonset is deleted, and remove it then; post events of pods meanwhile")
	f.StringVar(&n.node, "node-name", os.Getenv("NODE_NAME"), "the node's name in Kubernetes")
	f.StringVar(&n.daemonSet, "daemonset", "", "NAMESPACE/NAME of the DaemonSet that this runs in; for --stay")
	f.DurationVar(&n.every, "every", 5*time.Minute, "how often to look at the node again; for --stay")
	f.DurationVar(&n.grace, "grace", 50*time.Second, "how long the removal may take, less than the pod's terminationGracePeriodSeconds; for --stay")
}

// nodeAgent installs and labels, once or as long as the DaemonSet is there.
func (a *app) nodeAgent(c *cobra.Command, i *installFlags, o install.Options) error {
	n := &i.agent
	if n.node == "" {
		return usagef("--node-name: expected the node's name with --label-node and --stay")
	}
	namespace, name, ok := strings.Cut(n.daemonSet, "/")
	if n.stay && (!ok || namespace == "" || name == "") {
		return usagef("--daemonset: expected NAMESPACE/NAME with --stay, got %q", n.daemonSet)
	}
	if n.every < time.Second || n.grace < time.Second {
		return usagef("--every and --grace: expected a second or more")
	}
	api, err := kubeapi.InCluster()
	if err != nil {
		return err
	}
	defer api.Close()
	ctx, stop := notifyInterrupt(c.Context())
	defer stop()
	o.Logger = slog.New(slog.NewTextHandler(a.env.Stderr, nil))
	agent := &nodeagent.Agent{
		Install: func(ctx context.Context) (bool, []string, error) { return outcome(installOnce(ctx, o)) },
		Uninstall: func(ctx context.Context) (bool, []string, error) {
			return outcome(install.Uninstall(ctx, install.Options{Root: o.Root, Prefix: o.Prefix, Logger: o.Logger}))
		},
		Inspect: func(ctx context.Context) (*doctor.Report, error) { return inspectNode(ctx, o) },
		API:     api, Node: n.node, Namespace: namespace, DaemonSet: name, Every: n.every, Grace: n.grace, Logger: o.Logger,
	}
	agent.Beside = (&podevents.Poster{
		Dirs: func() []string { return stateDirs(o.Root, o.Prefix) }, API: api, Node: n.node, Logger: o.Logger,
	}).Run
	if i.restart == "systemd" {
		agent.Restart = func(ctx context.Context, units []string) error {
			_, err := install.Restart(ctx, o, units)
			return err
		}
	}
	if n.stay {
		return agent.Run(ctx)
	}
	return agent.Once(ctx)
}

// stateDirs are where the node's shims keep what belongs to their pods: the usual
// place, and what the installed configurations say. The node's file system is at
// root.
func stateDirs(root, prefix string) []string {
	if prefix == "" {
		prefix = install.DefaultPrefix
	}
	dirs := []string{runtimeconfig.Default().StateDir}
	// A pattern cannot be wrong, and a file that cannot be read is doctor's to tell.
	files, _ := filepath.Glob(filepath.Join(root, prefix, "etc", "*.toml"))
	for _, file := range append(files, filepath.Join(root, runtimeconfig.DefaultPath)) {
		if c, err := runtimeconfig.Load(file); err == nil && !slices.Contains(dirs, c.StateDir) {
			dirs = append(dirs, c.StateDir)
		}
	}
	for i, dir := range dirs {
		dirs[i] = filepath.Join(root, dir)
	}
	return dirs
}

func outcome(r *install.Result, err error) (bool, []string, error) {
	if err != nil {
		return false, nil, err
	}
	return r.Restart, r.Units, nil
}

// inspectNode has the program that was installed look at the node, inside the
// node's own file system.
func inspectNode(ctx context.Context, o install.Options) (*doctor.Report, error) {
	run := o.Exec
	if run == nil {
		run = install.Chroot(o.Root)
	}
	prefix := o.Prefix
	if prefix == "" {
		prefix = install.DefaultPrefix
	}
	argv := []string{path.Join(prefix, "bin", "coffer"), "doctor", "--output", "json", "--prefix", prefix}
	for tee, file := range o.Firmware {
		if file != "" {
			argv = append(argv, "--"+tee+"-firmware", file)
		}
	}
	// Its exit code tells of what is missing, and so does its report.
	out, err := run(ctx, argv...)
	var report doctor.Report
	if e := json.Unmarshal(out, &report); e != nil || len(report.Checks) == 0 {
		return nil, fmt.Errorf("look at the node: %w", firstError(err, e, fmt.Errorf("no report")))
	}
	return &report, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteDaemonSet deletes and waits.
func (a *app) deleteDaemonSet(ctx context.Context, which string) error {
	namespace, name, ok := strings.Cut(which, "/")
	if !ok || namespace == "" || name == "" {
		return usagef("--daemonset: expected NAMESPACE/NAME, got %q", which)
	}
	api, err := kubeapi.InCluster()
	if err != nil {
		return err
	}
	defer api.Close()
	if err := api.Delete(ctx, namespace, name, time.Second); err != nil {
		return err
	}
	return a.done(map[string]string{"deleted": which}, "deleted the DaemonSet %s and its pods", clean(which))
}
