package cli

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// generatedPolicy is a policy as --output json has it.
type generatedPolicy struct {
	Workload  string            `json:"workload"`
	File      string            `json:"file"`
	Line      int               `json:"line"`
	Digest    string            `json:"digest"`
	Images    map[string]string `json:"images"`
	Resources []string          `json:"resources"`
	Policy    json.RawMessage   `json:"policy"`
}

func describeGenerated(g *kube.Generated) (*generatedPolicy, error) {
	policy, err := g.Policy.Canonical()
	if err != nil {
		return nil, err
	}
	digest, err := g.Policy.Digest()
	if err != nil {
		return nil, err
	}
	out := &generatedPolicy{
		Workload: g.Workload.String(), Digest: "sha256:" + hex.EncodeToString(digest[:]), Policy: policy, Images: map[string]string{}, Resources: g.Resources(),
	}
	if out.Resources == nil {
		out.Resources = []string{}
	}
	out.File, out.Line = g.Workload.File()
	for reference, image := range g.Images {
		out.Images[reference] = run.Pinned(reference, image.Digest)
	}
	return out, nil
}

func (a *app) policyGenerateCommand() *cobra.Command {
	var (
		flags workloadFlags
		out   string
	)
	c := &cobra.Command{
		Use:   "generate FILE…",
		Short: "Write the pod policies of Kubernetes workloads",
		Long: `Write the pod policy of every workload in Kubernetes manifests: Pod, Deployment,
StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job and CronJob, with
the ConfigMaps, Secrets, claims, Services and ServiceAccounts of the same files.
Tags are resolved to digests. - reads standard input.

A policy is printed; those of several workloads are written to files of the
directory --out, KIND-NAME.json.`,
		Example: `  coffer policy generate web.yaml
  kustomize build . | coffer policy generate - --out policies`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			ctx, stop := notifyInterrupt(c.Context())
			defer stop()
			g, err := flags.generate(ctx, a, names)
			if err != nil {
				return err
			}
			defer g.Close()
			if len(g.Workloads) > 1 && out == "" && !a.json() {
				return usageError{hint.New(fmt.Errorf("the files have %d workloads", len(g.Workloads)), "write their policies to a directory with --out DIR, choose one with --workload KIND/NAME, or take --output json")}
			}
			if !a.json() {
				printNotes(a.env.Stderr, g.Notes)
			}
			var all []*generatedPolicy
			for i := range g.Workloads {
				p, err := describeGenerated(&g.Workloads[i])
				if err != nil {
					return err
				}
				all = append(all, p)
			}
			if out != "" {
				if err := writePolicies(out, all); err != nil {
					return err
				}
			}
			switch {
			case a.json():
				return a.printJSON(struct {
					Policies []*generatedPolicy `json:"policies"`
					Notes    []kube.Problem     `json:"notes"`
				}{all, append([]kube.Problem{}, g.Notes...)})
			case out == "":
				_, err = a.env.Stdout.Write(all[0].Policy)
				return err
			}
			for _, p := range all {
				a.printf("%s\n", filepath.Join(out, policyFile(p.Workload)))
			}
			return nil
		},
	}
	flags.add(c)
	c.Flags().StringVarP(&out, "out", "o", "", "directory for the policies")
	return c
}

// policyFile is the name of a workload's policy in a directory.
func policyFile(workload string) string {
	return strings.ToLower(strings.ReplaceAll(workload, "/", "-")) + ".json"
}

func writePolicies(dir string, all []*generatedPolicy) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return usagef("--out: %w", err)
	}
	seen := map[string]bool{}
	for _, p := range all {
		name := policyFile(p.Workload)
		if seen[name] {
			return errors.New("two workloads are called " + p.Workload + ": choose one with --workload, or give their files one by one")
		}
		seen[name] = true
		err := writeFile(filepath.Join(dir, name), true, func(w io.Writer) error { _, err := w.Write(p.Policy); return err })
		if err != nil {
			return err
		}
	}
	return nil
}
