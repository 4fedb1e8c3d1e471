package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// plan is what `coffer prepare` has to say, as --output json has it.
type plan struct {
	Workloads []plannedWorkload `json:"workloads"`
	// References are what guests will report.
	References []run.ReferenceValue `json:"reference_values"`
	// Commands are what is left to do at trustees.
	Commands   []string `json:"commands"`
	Registered bool     `json:"registered"`
	// Files are the prepared manifests: their names where they were written,
	// else their contents.
	Files []plannedFile  `json:"files"`
	Notes []kube.Problem `json:"notes"`

	changes  []kube.Change
	prepared []*run.Workload
}

type plannedWorkload struct {
	Workload string `json:"workload"`
	File     string `json:"file"`
	Line     int    `json:"line"`
	// Policy and Initdata are digests, Document is the initdata itself.
	Policy    string   `json:"policy"`
	Initdata  string   `json:"initdata"`
	Document  string   `json:"initdata_document"`
	Images    []string `json:"images"`
	Resources []string `json:"resources"`
}

type plannedFile struct {
	Name    string `json:"name"`
	Content string `json:"content,omitempty"`
}

// commands lists what an owner does at the trustees: puts the secrets there,
// and, unless that is done already, binds them and registers the guest.
func (p *plan) commands(flags *prepareFlags) {
	where := map[string]string{"": ""}
	if url := flags.initdata.TrusteeURL; url != "" {
		where[""] = connection(url, flags.trusteeCA)
	}
	for _, t := range flags.initdata.Trustees {
		where[t.Name] = connection(t.URL, "")
	}
	asked := map[string]bool{}
	for _, w := range p.prepared {
		for _, r := range w.Resources {
			if !asked[r.String()] {
				asked[r.String()] = true
				p.Commands = append(p.Commands, "coffer trustee secret set kbs:///"+r.Path()+" FILE"+where[r.Trustee()])
			}
		}
	}
	for _, w := range p.prepared {
		for _, r := range w.Resources {
			if !flags.register || r.Trustee() != "" {
				p.Commands = append(p.Commands, fmt.Sprintf("coffer trustee bind kbs:///%s %s --description %s%s", r.Path(), w.DigestHex(), shellWord(w.Workload.String()), where[r.Trustee()]))
			}
		}
	}
	if flags.register {
		return
	}
	for _, v := range p.References {
		p.Commands = append(p.Commands, fmt.Sprintf("coffer trustee reference-value add %s %s --description %s%s", v.Name, v.Value, shellWord(v.Description), where[""]))
	}
}

// connection are the flags that name a trustee.
func connection(url, ca string) string {
	s := " --trustee " + shellWord(url)
	if ca != "" {
		s += " --trustee-ca " + shellWord(ca)
	}
	return s + " --admin-key KEY"
}

// shellWord quotes a word for a shell where it needs to be.
func shellWord(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=@") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// printPlan prints the manifests and the plan: where the manifests are files,
// the plan is the result, else they are.
func (a *app) printPlan(files []kube.File, p *plan, written bool) error {
	if a.json() {
		if !written {
			for _, f := range files {
				p.Files = append(p.Files, plannedFile{f.Name, string(f.Data)})
			}
		}
		return a.printJSON(p)
	}
	printNotes(a.env.Stderr, p.Notes)
	if written {
		return p.text(a.env.Stdout)
	}
	for i, f := range files {
		if i > 0 && !strings.HasPrefix(string(f.Data), "---") {
			a.printf("---\n")
		}
		if _, err := a.env.Stdout.Write(f.Data); err != nil {
			return err
		}
	}
	return p.text(a.env.Stderr)
}

// text is the plan for a person.
func (p *plan) text(out io.Writer) error {
	var b strings.Builder
	for _, w := range p.Workloads {
		fmt.Fprintf(&b, "%s (%s:%d)\n  policy    %s\n  initdata  %s\n", clean(w.Workload), clean(w.File), w.Line, w.Policy, w.Initdata)
		for _, i := range w.Images {
			fmt.Fprintf(&b, "  image     %s\n", i)
		}
		for _, r := range w.Resources {
			fmt.Fprintf(&b, "  needs     %s\n", r)
		}
	}
	if len(p.References) > 0 {
		b.WriteString("\nThe guest will report:\n")
		for _, v := range p.References {
			fmt.Fprintf(&b, "  %s  %s  (%s)\n", v.Name, v.Value, v.Description)
		}
	}
	if p.Registered {
		b.WriteString("\nThe bindings and reference values are registered.\n")
	}
	if len(p.Commands) > 0 {
		b.WriteString("\nLeft to do at the trustee:\n")
		for _, c := range p.Commands {
			b.WriteString("  " + c + "\n")
		}
	}
	for _, f := range p.Files {
		fmt.Fprintf(&b, "\nwrote %s", clean(f.Name))
	}
	if len(p.Files) > 0 {
		b.WriteString("\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}
