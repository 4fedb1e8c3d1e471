package cli

import (
	"math"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/host/blobcache"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/podpolicy"
)

func (a *app) cacheCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "cache",
		Short: "Look into the host's cache of image blobs",
		Long: `Look into the cache from which guests get image blobs that another guest has
fetched. It holds layers of public images and encrypted ones, by digest. No guest
believes it: what it gives is checked.`,
		Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.PersistentFlags().StringVar(&dir, "blob-cache", run.DefaultBlobCache(), "the cache's directory")
	c.AddCommand(a.cacheListCommand(&dir), a.cachePruneCommand(&dir))
	return c
}

// withCache opens the cache for f.
func withCache(dir string, f func(*blobcache.Store) error) error {
	if dir == "" {
		return usagef("--blob-cache: expected a directory; there is no default without $HOME or $XDG_CACHE_HOME")
	}
	store, err := blobcache.Open(dir, blobcache.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	return f(store)
}

func (a *app) cacheListCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the blobs, the most recently used first",
		Args:  args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return withCache(*dir, func(s *blobcache.Store) error { return a.printBlobs(s.List()) })
		},
	}
}

func (a *app) cachePruneCommand(dir *string) *cobra.Command {
	var keep string
	c := &cobra.Command{
		Use:   "prune",
		Short: "Drop the blobs that were used least recently, and print them",
		Args:  args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			var most uint64
			if keep != "" {
				var err error
				if most, err = podpolicy.ParseBytes(keep); err != nil {
					return usagef("--keep: %w", err)
				}
			}
			return withCache(*dir, func(s *blobcache.Store) error {
				dropped, err := s.Prune(int64(min(most, math.MaxInt64)))
				if err != nil {
					return err
				}
				return a.printBlobs(dropped)
			})
		},
	}
	c.Flags().StringVar(&keep, "keep", "", "how much may stay, in bytes or with a suffix, such as 2Gi (default: nothing)")
	return c
}

func (a *app) printBlobs(list []blobcache.Entry) error {
	if a.json() {
		if list == nil {
			list = []blobcache.Entry{}
		}
		return a.printJSON(list)
	}
	w := tabwriter.NewWriter(a.env.Stdout, 0, 4, 2, ' ', 0)
	row(w, "DIGEST", "BYTES", "USED")
	for _, e := range list {
		row(w, e.Digest, e.Size, stamp(e.Used))
	}
	return w.Flush()
}
