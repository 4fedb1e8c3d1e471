package collateral

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Limits on a directory of loose files and on a bundle.
const (
	maxFiles     = 16384
	maxDepth     = 8
	maxLooseFile = 16 << 20
)

// Status is what became of a file.
type Status string

// The statuses.
const (
	Accepted Status = "accepted" // passed the checks
	Kept     Status = "kept"     // passed the checks, but what is stored is newer: that is kept
	Refused  Status = "refused"  // recognised, but did not pass the checks
	Issuers  Status = "issuers"  // certificates that documents beside them are signed under
	Ignored  Status = "ignored"  // not recognised, or ambiguous
)

// Finding says what became of a file; a file with several items has several.
type Finding struct {
	File   string `json:"file"`
	Item   *Item  `json:"item,omitempty"`
	Status Status `json:"status"`
	Reason string `json:"reason,omitempty"`
}

// Files is collateral in files as somebody has them: a bundle, a directory in
// the layout of a [Store], or loose files that are recognised by their content.
// It does not follow changes of the files. It is safe for concurrent use.
type Files struct {
	entries  map[Item]*Entry
	findings []Finding
}

// Open reads a file, a bundle, or all files below a directory, and checks what
// it recognises. What it does not recognise, or what does not pass the checks,
// is among the findings; the error is for what cannot be read at all.
func Open(name string, checks Checks) (*Files, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	r := &reader{files: map[string]*looseFile{}}
	if info.IsDir() {
		err = r.directory(name)
	} else {
		err = r.file(name, info)
	}
	if err != nil {
		return nil, err
	}
	return r.judge(checks), nil
}

// Load implements [Source]. An Intel document that does not say on which track
// it is counts for both.
func (f *Files) Load(i Item) (*Entry, error) {
	if e, ok := f.entries[i]; ok {
		return e, nil
	}
	if other, ok := i.otherTrack(); ok {
		if e, ok := f.entries[other]; ok {
			again := *e
			again.Item = i
			return &again, nil
		}
	}
	return nil, fs.ErrNotExist
}

// Entries returns what passed the checks, in order.
func (f *Files) Entries() []*Entry {
	out := slices.Collect(maps.Values(f.entries))
	slices.SortFunc(out, func(a, b *Entry) int { return strings.Compare(a.Item.String(), b.Item.String()) })
	return out
}

// Findings says for each file what became of it.
func (f *Files) Findings() []Finding { return f.findings }

// reader collects files.
type reader struct {
	files    map[string]*looseFile
	total    int64
	findings []Finding
}

type looseFile struct {
	data     []byte
	modified time.Time
}

func (r *reader) found(file string, i *Item, s Status, format string, args ...any) {
	r.findings = append(r.findings, Finding{file, i, s, fmt.Sprintf(format, args...)})
}

func (r *reader) keep(name string, data []byte, modified time.Time) error {
	if r.total += int64(len(data)); len(r.files) >= maxFiles || r.total > maxBundle {
		return fmt.Errorf("expected at most %d files of together %d MiB", maxFiles, maxBundle>>20)
	}
	r.files[name] = &looseFile{data, modified}
	return nil
}

func (r *reader) directory(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	s := &Store{dir: dir, root: root}
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			r.found(name, nil, Ignored, "cannot be read: %v", err)
			return nil
		case d.IsDir() && (name == damagedDir || strings.Count(name, "/") >= maxDepth):
			return fs.SkipDir
		case d.IsDir() || strings.HasPrefix(d.Name(), tempPrefix):
			return nil
		case d.Type() == fs.ModeSymlink: // as in a mounted ConfigMap; none leads out of the directory
			if to, err := root.Stat(name); err == nil && to.IsDir() {
				return nil // what it leads to is visited itself
			}
		case !d.Type().IsRegular():
			r.found(name, nil, Ignored, "no regular file")
			return nil
		}
		data, modified, err := s.read(name, maxLooseFile)
		if err != nil {
			r.found(name, nil, Ignored, "cannot be read: %v", err)
			return nil
		}
		return r.keep(name, data, modified)
	})
}

func (r *reader) file(name string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() { // to open a pipe would wait for a writer
		return fmt.Errorf("%s: expected a file or a directory, got %s", name, info.Mode().Type())
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	var head [512]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return err
	}
	whole := io.MultiReader(bytes.NewReader(head[:n]), f)
	if isTar(head[:n]) {
		return r.bundle(whole)
	}
	data, err := io.ReadAll(io.LimitReader(whole, maxLooseFile+1))
	if err != nil {
		return err
	}
	if len(data) > maxLooseFile {
		return fmt.Errorf("%s: expected at most %d bytes", name, maxLooseFile)
	}
	return r.keep(filepath.ToSlash(name), data, info.ModTime())
}

// judge recognises the files, finds issuers for documents that came without, and
// checks everything.
func (r *reader) judge(checks Checks) *Files {
	out := &Files{entries: map[Item]*Entry{}}
	type found struct {
		file string
		candidate
	}
	var all []found
	issuers := issuerSet{chains: map[*x509.Certificate][]byte{}}
	for _, name := range slices.Sorted(maps.Keys(r.files)) {
		f := r.files[name]
		if certificate, ok := strings.CutSuffix(name, ".json"); ok && strings.HasSuffix(certificate, ".der") && r.files[certificate] != nil {
			continue // it says where the certificate came from
		}
		seen, err := recognize(name, f.data)
		if err != nil {
			r.found(name, nil, Ignored, "%v", err)
			continue
		}
		switch {
		case !issuers.add(seen.issuers):
			r.found(name, nil, Ignored, "expected at most %d different certificates of issuers in all files", maxIssuers)
		case len(seen.issuers) > 0 && len(seen.candidates) == 0:
			r.found(name, nil, Issuers, "%d certificates", len(seen.issuers))
		}
		for _, c := range seen.candidates {
			if c.source == "" {
				c.source, c.fetched = name, f.modified
			}
			if about := r.files[sidecar(name)]; about != nil && c.item.Kind == VCEK {
				if e, err := decodeEntry(about.data, c.body); err == nil && e.Item == c.item {
					c.source, c.fetched = e.Source, e.Fetched
				}
			}
			all = append(all, found{name, c})
		}
	}
	issuers.certs = append(issuers.certs, knownIssuers()...)
	for _, c := range all {
		e, err := issuers.complete(&checks, c.candidate)
		if err != nil {
			r.found(c.file, &c.item, Refused, "%v", err)
			continue
		}
		e.Source, e.Fetched = c.source, c.fetched
		if old, ok := out.entries[c.item]; ok && bytes.Equal(old.Body, e.Body) {
			r.found(c.file, &c.item, Accepted, "the same as another file")
			continue
		} else if ok && newer(old, e) {
			r.found(c.file, &c.item, Kept, "there is a newer one")
			continue
		}
		out.entries[c.item] = e
		r.found(c.file, &c.item, Accepted, "")
	}
	slices.SortStableFunc(r.findings, func(a, b Finding) int { return strings.Compare(a.File, b.File) })
	out.findings = r.findings
	return out
}

// Import checks what Open finds at a path and keeps it in dir, which is made
// where it is missing. What is stored is not replaced by something older.
func Import(dir, from string, checks Checks) ([]Finding, error) {
	files, err := Open(from, checks)
	if err != nil {
		return nil, err
	}
	store, err := createStore(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = store.Close() }() // every file was synced
	kept := map[Item]bool{}
	for _, e := range files.Entries() {
		if raw, err := store.Load(e.Item); err == nil {
			if old, err := checks.check(e.Item, raw.Body, raw.Chain); err == nil {
				old.Fetched = raw.Fetched
				if newer(old, e) {
					kept[e.Item] = true
					continue
				}
			}
		}
		if err := store.save(e); err != nil {
			return nil, fmt.Errorf("%s: %w", path.Base(e.Item.path()), err)
		}
	}
	for i := range files.findings {
		if f := &files.findings[i]; f.Status == Accepted && kept[*f.Item] {
			f.Status, f.Reason = Kept, "what is stored is newer"
		}
	}
	return files.findings, nil
}
