package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/kbs/admin"
)

// Limits of what was kept elsewhere.
const (
	maxAuditKeys      = 1 << 20
	maxCheckpointFile = 16 << 20
)

// verifyFlags say what was kept elsewhere.
type verifyFlags struct {
	keys, save  string
	checkpoints []string
	pin         bool
	complete    bool
}

func (t *trusteeGroup) auditVerifyCommand() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use: "verify [FILE]", Short: "Verify the record's chain and checkpoints, at the trustee or in an export",
		Long: `Verify the whole record of a tenant: that no number is missing, that every hash
covers its predecessor and its record, and that every signed checkpoint agrees.
With FILE it is an export, and no trustee is asked.

--keys names the keys that checkpoints must be signed with, kept from earlier.
Without it they are those that the trustee itself names, which proves nothing
against whoever runs it. --pin-keys writes the file where there is none yet.
--checkpoint names checkpoints that were kept elsewhere: each must be found, so
that a record that was cut off or written anew is noticed. --save-checkpoint
keeps the newest one after it was verified; a file that is there already is
checked first.

Exit code 1 means that the record is not as it was written, or that it could not
be read to its end.`,
		Example: `  coffer trustee audit verify --keys trustee-keys.json --pin-keys --save-checkpoint last.jws
  coffer trustee audit verify records-2026.jsonl --keys trustee-keys.json --checkpoint last.jws`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			known, pinned, err := f.read()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				if err := offline(c, "verifying an export"); err != nil {
					return err
				}
				return t.verifyExport(c.Context(), args[0], &f, known, pinned)
			}
			return t.ask(c, func(cl *admin.Client) error { return t.verifyOnline(c.Context(), cl, &f, known, pinned) })
		},
	}
	s := c.Flags()
	s.StringVar(&f.keys, "keys", "", "file with the keys of checkpoints (JSON Web Key Set)")
	s.BoolVar(&f.pin, "pin-keys", false, "write --keys, where there is no such file yet, with the keys named now")
	s.StringArrayVar(&f.checkpoints, "checkpoint", nil, "file with checkpoints that were kept (repeatable)")
	s.StringVar(&f.save, "save-checkpoint", "", "file to keep the newest checkpoint in")
	s.BoolVar(&f.complete, "complete", false, "refuse a record whose beginning retention has removed")
	return c
}

// read reads the files; no keys means none are known.
func (f *verifyFlags) read() (known audit.Keys, pinned []string, err error) {
	if f.pin && f.keys == "" {
		return nil, nil, usagef("--pin-keys needs --keys FILE, the file to write")
	}
	if f.keys != "" {
		doc, err := readSmall(f.keys, maxAuditKeys)
		switch {
		case os.IsNotExist(err) && f.pin:
		case os.IsNotExist(err):
			return nil, nil, usageError{hint.New(fmt.Errorf("--keys: %w", err), "--pin-keys writes it with the keys that are named now; after that it does not change")}
		case err != nil:
			return nil, nil, usagef("--keys: %w", err)
		default:
			if known, err = audit.ParseKeys(doc); err != nil {
				return nil, nil, usagef("--keys: %s: %w", f.keys, err)
			}
		}
	}
	files := f.checkpoints
	if f.save != "" {
		if _, err := os.Stat(f.save); err == nil {
			files = append(files[:len(files):len(files)], f.save)
		} else if !os.IsNotExist(err) {
			return nil, nil, usagef("--save-checkpoint: %w", err)
		}
	}
	for _, name := range files {
		doc, err := readSmall(name, maxCheckpointFile)
		if err != nil {
			return nil, nil, usagef("checkpoint: %w", err)
		}
		list, err := parseCheckpoints(doc)
		if err != nil {
			return nil, nil, usagef("checkpoint: %s: %w", name, err)
		}
		pinned = append(pinned, list...)
	}
	return known, pinned, nil
}

// parseCheckpoints reads compact JWS, one on each line, or what --output json
// prints: one checkpoint or a list.
func parseCheckpoints(doc []byte) ([]string, error) {
	doc = bytes.TrimSpace(doc)
	var list []admin.Checkpoint
	switch {
	case bytes.HasPrefix(doc, []byte("[")):
		if err := json.Unmarshal(doc, &list); err != nil {
			return nil, err
		}
	case bytes.HasPrefix(doc, []byte("{")):
		var one admin.Checkpoint
		if err := json.Unmarshal(doc, &one); err != nil {
			return nil, err
		}
		list = append(list, one)
	default:
		for s := range strings.FieldsSeq(string(doc)) {
			list = append(list, admin.Checkpoint{JWS: s})
		}
	}
	if len(list) == 0 {
		return nil, errors.New("holds no checkpoint")
	}
	out := make([]string, len(list))
	for i, c := range list {
		if strings.Count(c.JWS, ".") != 2 {
			return nil, fmt.Errorf("checkpoint %d: expected a compact JWS of three parts", i+1)
		}
		out[i] = c.JWS
	}
	return out, nil
}

func (t *trusteeGroup) verifyOnline(ctx context.Context, cl *admin.Client, f *verifyFlags, known audit.Keys, pinned []string) error {
	if f.save != "" {
		// So that all that is verified now is covered by what is kept.
		if _, err := signHead(ctx, cl); err != nil {
			return err
		}
	}
	l, err := openRemote(ctx, cl)
	if err != nil {
		return err
	}
	keys := known
	if keys == nil {
		keys = l.keys
	}
	r, err := audit.Verify(ctx, audit.Pages(ctx, l.list, l.tenant), audit.VerifyOptions{
		Tenant: l.tenant, Keys: keys, Checkpoints: l.jws(), Pinned: pinned, Complete: f.complete,
	})
	if err != nil {
		return err
	}
	return t.verified(r, f, known != nil, keys, l.jws())
}

func (t *trusteeGroup) verifyExport(ctx context.Context, path string, f *verifyFlags, known audit.Keys, pinned []string) error {
	file, err := os.Open(path)
	if err != nil {
		return usageError{err}
	}
	defer func() { _ = file.Close() }()
	x, err := audit.OpenExport(file)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	keys := known
	if keys == nil {
		keys = x.Keys
	}
	r, err := audit.Verify(ctx, x.Entries(), audit.VerifyOptions{
		Tenant: x.Header.Tenant, Keys: keys, Checkpoints: x.Checkpoints, Pinned: pinned, Complete: f.complete,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return t.verified(r, f, known != nil, keys, x.Checkpoints)
}

// verified reports, and keeps what is to be kept of a record that is as it was
// written.
func (t *trusteeGroup) verified(r audit.Report, f *verifyFlags, known bool, keys audit.Keys, checkpoints []string) error {
	saved := ""
	if r.OK {
		if f.pin && !known {
			if err := writeFile(f.keys, false, func(w io.Writer) error { return writeJSON(w, keys) }); err != nil {
				return err
			}
		}
		if f.save != "" {
			newest, err := newestCheckpoint(keys, checkpoints)
			if err != nil {
				return err
			}
			if err := writeFile(f.save, true, func(w io.Writer) error { _, err := io.WriteString(w, newest+"\n"); return err }); err != nil {
				return err
			}
			saved = f.save
		}
	}
	if err := t.printReport(r, known, saved); err != nil {
		return err
	}
	switch {
	case !r.OK:
		return exitCode(ExitFailed)
	case known:
	case f.pin:
		t.warn(f.keys + ": the keys of checkpoints, believed this once; compare them with the trustee's operator")
	default:
		t.warn("the checkpoints were verified with the keys that the record itself names; keep them, and name them with --keys the next time")
	}
	return nil
}

// warn writes a line to standard error.
func (a *app) warn(text string) { _, _ = fmt.Fprintf(a.env.Stderr, "coffer: warning: %s\n", text) }

func writeJSON(w io.Writer, v any) error {
	doc, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(doc, '\n'))
	return err
}

// newestCheckpoint is that of the last entry that has one.
func newestCheckpoint(keys audit.Keys, list []string) (string, error) {
	newest, seq := "", int64(0)
	for _, jws := range list {
		c, err := keys.Checkpoint(jws)
		if err != nil {
			return "", err
		}
		if c.Seq > seq {
			newest, seq = jws, c.Seq
		}
	}
	if newest == "" {
		return "", errors.New("--save-checkpoint: the record has no checkpoint yet")
	}
	return newest, nil
}

func (t *trusteeGroup) printReport(r audit.Report, known bool, saved string) error {
	if t.json() {
		return t.printJSON(struct {
			audit.Report
			// KeysKnown: the keys were kept from earlier.
			KeysKnown bool   `json:"keys_known"`
			Saved     string `json:"saved_checkpoint,omitempty"`
		}{r, known, saved})
	}
	if !r.OK {
		t.printf("NOT VERIFIED: tenant %s: %s\n", r.Tenant, clean(r.Problem.String()))
		return nil
	}
	t.printf("verified: tenant %s, %s", r.Tenant, count(r.Entries, "record"))
	if r.Entries > 0 {
		t.printf(" (%d to %d, %s to %s)", r.First, r.Last, r.From.UTC().Format(time.RFC3339), r.To.UTC().Format(time.RFC3339))
	}
	t.printf("\ncheckpoints: %d agree, %d of them kept elsewhere, %d of records that retention has removed\n", r.Checkpoints, r.Pinned, r.Expired)
	if r.Anchor != nil {
		t.printf("the record begins at the checkpoint of record %d: retention has removed what was before\n", r.Anchor.Seq)
	}
	if r.Unsigned > 0 {
		t.printf("chained, but not signed yet: the newest %s\n", count(r.Unsigned, "record"))
	}
	if saved != "" {
		t.printf("%s: the newest checkpoint\n", saved)
	}
	return nil
}
