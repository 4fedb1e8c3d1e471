package main

import (
	"context"
	"flag"
	"io"
	"runtime/debug"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/pull"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/oci/signature"
)

// runPull is this program as the contender: a process that pulls one image, with
// the packages and the settings of the guest's agent.
func runPull(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("pull", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	name := flags.String("ref", "", "the image, with its digest")
	dest := flags.String("dest", "", "what becomes the root")
	if err := flags.Parse(args); err != nil {
		return err
	}
	const gcPercent = 50 // as internal/guest/program sets it
	debug.SetGCPercent(gcPercent)
	ref, err := oci.ParseReference(*name)
	if err != nil {
		return err
	}
	client, err := registry.New(registry.Options{PlainHTTP: []string{ref.Host()}})
	if err != nil {
		return err
	}
	defer client.Close()
	repository, err := client.Repository(ref)
	if err != nil {
		return err
	}
	_, err = pull.Pull(ctx, pull.Options{Ref: ref, Fetcher: repository, Policy: signature.InsecureAcceptAnything(), Keys: keys{}, Dest: *dest})
	return err
}
