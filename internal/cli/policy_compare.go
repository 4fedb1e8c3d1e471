package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// openPolicy reads a policy: a document, the initdata that has one, or manifests
// whose one workload (or the one that is named) carries initdata.
func (a *app) openPolicy(path, workload string) (*podpolicy.Policy, error) {
	data, err := a.readLimited(path, kube.MaxFileBytes)
	if err != nil {
		return nil, usageError{err}
	}
	doc, err := policyDocument(path, data, workload)
	if err != nil {
		return nil, err
	}
	p, err := podpolicy.Parse(doc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

func policyDocument(path string, data []byte, workload string) ([]byte, error) {
	var head struct {
		Kind string `json:"kind"`
	}
	if json.Unmarshal(data, &head) == nil && (head.Kind == podpolicy.Kind || head.Kind == "") {
		return data, nil
	}
	if doc, err := initdata.Parse(data); err == nil {
		return policyEntry(path, doc)
	}
	in, err := kube.Load([]kube.File{{Name: path, Data: data}})
	if err != nil {
		return nil, err
	}
	var found []*kube.Workload
	var names []string
	for _, w := range in.Workloads() {
		if w.Annotation(run.AnnotationInitdata) != "" && (workload == "" || strings.EqualFold(w.String(), workload)) {
			found, names = append(found, w), append(names, w.String())
		}
	}
	switch len(found) {
	case 0:
		return nil, hint.New(fmt.Errorf("%s: no policy, no initdata, and no workload with the annotation %s", path, run.AnnotationInitdata), "`coffer prepare` writes it")
	case 1:
	default:
		return nil, usageError{hint.New(fmt.Errorf("%s has several workloads: %s", path, strings.Join(names, ", ")), "choose one with --workload KIND/NAME")}
	}
	raw, err := initdata.DecodeAnnotation(found[0].Annotation(run.AnnotationInitdata))
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", path, names[0], err)
	}
	doc, err := initdata.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", path, names[0], err)
	}
	return policyEntry(path, doc)
}

func policyEntry(path string, doc *initdata.Document) ([]byte, error) {
	text, ok := doc.Data[initdata.KeyPodPolicy]
	if !ok {
		return nil, fmt.Errorf("%s: the initdata has no %s", path, initdata.KeyPodPolicy)
	}
	return []byte(text), nil
}

func (a *app) policyDiffCommand() *cobra.Command {
	var workload string
	c := &cobra.Command{
		Use:   "diff A B",
		Short: "Show in what two policies differ; exit code 1 if they do",
		Long: `Show in what two policies differ in meaning, a line each. A and B are policy
documents, initdata, or manifests that carry initdata; - reads standard input.`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			var policies [2]*podpolicy.Policy
			for i, path := range args {
				var err error
				if policies[i], err = a.openPolicy(path, workload); err != nil {
					return err
				}
			}
			differences := podpolicy.Diff(policies[0], policies[1])
			if a.json() {
				if err := a.printJSON(append([]podpolicy.Difference{}, differences...)); err != nil {
					return err
				}
			} else {
				for _, d := range differences {
					a.printf("%s\n", clean(d.String()))
				}
			}
			if len(differences) > 0 {
				return exitCode(ExitFailed)
			}
			return nil
		},
	}
	c.Flags().StringVar(&workload, "workload", "", "KIND/NAME of the workload in manifests with several")
	return c
}

func (a *app) policyExplainCommand() *cobra.Command {
	var workload string
	c := &cobra.Command{
		Use:   "explain FILE",
		Short: "Say in plain words what a policy allows and what it leaves to the host",
		Long: `Say in plain words what a policy fixes, allows, and leaves open to the host. FILE
is a policy document, initdata, or a manifest that carries initdata; - reads
standard input.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := a.openPolicy(args[0], workload)
			if err != nil {
				return err
			}
			sections := podpolicy.Describe(p)
			if a.json() {
				return a.printJSON(sections)
			}
			for i, s := range sections {
				if i > 0 {
					a.printf("\n")
				}
				a.printf("%s\n", clean(s.Title))
				for _, f := range s.Facts {
					a.printf("  %-8s %s\n", f.Kind, clean(f.Text))
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&workload, "workload", "", "KIND/NAME of the workload in a manifest with several")
	return c
}

// checkWorkload says whether the workload of a manifest fits a policy.
func (a *app) checkWorkload(c *cobra.Command, flags *workloadFlags, file, policy string) error {
	ctx, stop := notifyInterrupt(c.Context())
	defer stop()
	p, err := a.openPolicy(policy, flags.workload)
	if err != nil {
		return err
	}
	g, err := flags.generate(ctx, a, []string{file})
	if err != nil {
		return err
	}
	defer g.Close()
	if len(g.Workloads) != 1 {
		return usageError{hint.New(fmt.Errorf("%s has %d workloads", file, len(g.Workloads)), "choose one with --workload KIND/NAME")}
	}
	findings, err := kube.Check(ctx, &g.Workloads[0], p)
	if err != nil {
		return err
	}
	result := struct {
		Workload string         `json:"workload"`
		Fits     bool           `json:"fits"`
		Findings []kube.Finding `json:"findings"`
	}{g.Workloads[0].Workload.String(), len(findings) == 0, append([]kube.Finding{}, findings...)}
	if a.json() {
		err = a.printJSON(result)
	} else {
		err = a.printFindings(a.env.Stdout, result.Workload, findings)
	}
	if err == nil && !result.Fits {
		return exitCode(ExitFailed)
	}
	return err
}

func (a *app) printFindings(w io.Writer, workload string, findings []kube.Finding) error {
	if len(findings) == 0 {
		_, err := fmt.Fprintf(w, "%s fits the policy\n", workload)
		return err
	}
	for _, f := range findings {
		if _, err := fmt.Fprintln(w, clean(f.String())); err != nil {
			return err
		}
	}
	return nil
}
