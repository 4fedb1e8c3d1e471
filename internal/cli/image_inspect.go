package cli

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/imagetool"
)

func (a *app) imageInspectCommand() *cobra.Command {
	var f imageFlags
	c := &cobra.Command{
		Use: "inspect IMAGE", Short: "Show what an image is made of",
		Long: `Show an image's platforms, manifests, layers with their media types and whether
they are encrypted and for which keys, configuration, and the signatures that are
beside it, which are found and not verified (see coffer image verify). No layer is
fetched.

IMAGE is ` + sourceHelp + `.`,
		Example: `  coffer image inspect registry.example/shop/app:v1 --output json`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withImages(c, &f, func(w *imageWork) error {
				src, err := w.openSource(args[0])
				if err != nil {
					return err
				}
				defer func() { _ = src.Close() }()
				r, err := imagetool.Inspect(w.ctx, src, src.Ref, w.tool.Platform)
				if err != nil {
					return fmt.Errorf("inspect %s: %w", args[0], err)
				}
				if isLocal(src.Ref) {
					r.Reference = args[0]
				}
				w.ui.Close()
				if a.json() {
					return a.printJSON(r)
				}
				return a.printReport(r)
			})
		},
	}
	f.add(c, "default: all of them")
	return c
}

func (a *app) printReport(r *imagetool.Report) error {
	w := tabwriter.NewWriter(a.env.Stdout, 0, 4, 2, ' ', 0)
	row(w, "image", r.Reference)
	row(w, "digest", r.Digest)
	row(w, "type", r.MediaType)
	for _, f := range r.Found {
		row(w, "signatures", fmt.Sprintf("%s %s of %s: %s", f.Kind, f.Digest, f.Subject.Short(), strings.TrimSpace(fmt.Sprintf("%d entries %s", f.Entries, f.ArtifactType))))
	}
	if len(r.Found) == 0 {
		row(w, "signatures", "none found")
	}
	for _, m := range r.Manifests {
		_, _ = fmt.Fprintln(w)
		printManifest(w, &m)
	}
	return w.Flush()
}

func printManifest(w io.Writer, m *imagetool.ManifestReport) {
	row(w, "manifest", m.Digest)
	row(w, "  type", m.MediaType)
	row(w, "  platform", cmp.Or(m.Platform, "not stated"))
	if m.Artifact != "" {
		row(w, "  no container image", m.Artifact)
	}
	if c := m.Config; c != nil {
		for _, line := range []struct {
			name  string
			value []string
		}{
			{"entrypoint", c.Config.Entrypoint}, {"command", c.Config.Cmd}, {"environment", c.Config.Env},
			{"user", []string{c.Config.User}}, {"working directory", []string{c.Config.WorkingDir}},
		} {
			if text := strings.Join(line.value, " "); text != "" {
				row(w, "  "+line.name, text)
			}
		}
	}
	for i, l := range m.Layers {
		state := "not encrypted"
		if l.Encrypted {
			state = "encrypted"
		}
		row(w, fmt.Sprintf("  layer %d", i), fmt.Sprintf("%s %d bytes %s %s", l.Digest, l.Size, l.MediaType, state))
		for _, k := range l.Keys {
			row(w, "    key", strings.TrimSpace(fmt.Sprintf("%s %s %s %s", cmp.Or(k.KID, "-"), k.Algorithm, k.Provider, k.Problem)))
		}
	}
}
