package main

import (
	"context"
	"flag"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/coffer-project/coffer/internal/guest/blobs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/blobcache"
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
	cache := flags.String("cache", "", "the socket of the host's blob cache, if it is to be used")
	peak := flags.String("peak", "", "the file for the most memory that was resident, in MiB")
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
	var fetcher oci.Fetcher = repository
	if *cache != "" {
		pool := blobs.New()
		for range cacheStreams {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", *cache)
			if err != nil {
				return err
			}
			go func() { _ = pool.Serve(ctx, conn) }()
		}
		fetcher = blobcache.New(repository, pool, blobcache.Options{})
	}
	_, err = pull.Pull(ctx, pull.Options{Ref: ref, Fetcher: fetcher, Policy: signature.InsecureAcceptAnything(), Keys: keys{}, Dest: *dest})
	if err != nil {
		return err
	}
	most, err := status(os.Getpid(), "VmHWM")
	if err != nil {
		return err
	}
	return os.WriteFile(*peak, strconv.AppendFloat(nil, most, 'f', 1, 64), 0o600)
}

// cacheStreams is how many streams a host opens.
const cacheStreams = 8
