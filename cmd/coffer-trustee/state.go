package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/store"
)

func (a *app) backup() *cobra.Command {
	return &cobra.Command{
		Use:   "backup --config FILE OUT",
		Short: "Write a consistent copy of the database; the trustee may be serving",
		Long: `Write a consistent copy of the database to a new file, also while the trustee
serves. Secrets in it are sealed as they are in the database: to restore it
takes the key-encryption key, which is not in it. Keep that apart.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd.Context(), func(s *store.Store) error {
				err := writeNew(args[0], func(w io.Writer) error { return s.Backup(cmd.Context(), w) })
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.stdout, "%s: written\n", args[0])
				return err
			})
		},
	}
}

func (a *app) restore() *cobra.Command {
	return &cobra.Command{
		Use:   "restore --config FILE IN",
		Short: "Fill an empty database from a backup, SQLite or PostgreSQL alike",
		Long: `Fill an empty database from a backup. The backup may be of another kind of
database: to move from SQLite to PostgreSQL, back up with the one configuration
and restore with the other. A database that holds anything is refused, and so
is a backup that was cut off or altered; nothing is left half done.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := a.options()
			if err != nil {
				return err
			}
			so, closeKEK, err := trustee.StoreOptions(cmd.Context(), o)
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return errors.Join(err, closeKEK())
			}
			err = errors.Join(store.Restore(cmd.Context(), so, f), f.Close(), closeKEK())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "%s: restored\n", args[0])
			return err
		},
	}
}

func (a *app) rewrap() *cobra.Command {
	var next string
	c := &cobra.Command{
		Use:   "rewrap --config FILE --new-config NEW",
		Short: "Hand the data keys over to another key-encryption key",
		Long: `Hand the data keys over to the key-encryption key of another configuration
(storage.kek), for example from a file to a hardware security module. Contents
stay as they are. Stop every replica first, and start them with the new
configuration.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			other := &app{stdout: a.stdout, stderr: a.stderr, file: next}
			o, err := other.options()
			if err != nil {
				return err
			}
			so, closeKEK, err := trustee.StoreOptions(cmd.Context(), o)
			if err != nil {
				return err
			}
			err = errors.Join(a.withStore(cmd.Context(), func(s *store.Store) error { return s.RewrapDataKeys(cmd.Context(), so.KEK) }), closeKEK())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "data keys are wrapped by %s\n", so.KEK.ID())
			return err
		},
	}
	c.Flags().StringVar(&next, "new-config", "", "configuration file with the new storage.kek")
	if err := c.MarkFlagRequired("new-config"); err != nil {
		panic(err) //nolint:forbidigo // the flag is defined one line above
	}
	return c
}

func (a *app) newDataKey() *cobra.Command {
	return &cobra.Command{
		Use:   "new-data-key --config FILE",
		Short: "Seal what is written from now on under a new data key",
		Long: `Make a new data key, wrapped by the key-encryption key. What is written from now
on is sealed under it; older contents stay readable under theirs. Replicas that
are serving take it up when they first meet it. One data key is good for 2^32
contents: a new one once a year is plenty.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := a.withStore(cmd.Context(), func(s *store.Store) error { return s.RotateDataKey(cmd.Context()) })
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, "a new data key seals")
			return err
		},
	}
}

// withStore opens the database of the configuration for f.
func (a *app) withStore(ctx context.Context, f func(*store.Store) error) error {
	o, err := a.options()
	if err != nil {
		return err
	}
	so, closeKEK, err := trustee.StoreOptions(ctx, o)
	if err != nil {
		return err
	}
	s, err := store.Open(ctx, so)
	if err != nil {
		return errors.Join(err, closeKEK())
	}
	return errors.Join(f(s), s.Close(), closeKEK())
}

// writeNew writes a file that does not exist yet, whole or not at all.
func writeNew(path string, write func(io.Writer) error) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: exists already", path)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".backup-*") // mode 0600
	if err != nil {
		return err
	}
	err = errors.Join(write(tmp), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Link(tmp.Name(), path) // fails where somebody else was faster
	}
	return errors.Join(err, os.Remove(tmp.Name()))
}
