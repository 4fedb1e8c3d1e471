package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// Record is what an installation has written, or was about to write when it
// ended. It lies in PREFIX/install/record.json.
type Record struct {
	// Format is 1.
	Format int `json:"format"`
	// Complete is false while files are written or removed.
	Complete bool `json:"complete"`
	// Restart says that containerd was to be restarted and has not been yet.
	Restart bool `json:"restart,omitempty"`
	// Program is the version of the program that installed.
	Program string `json:"program"`
	// Handlers are the names that containerd was told.
	Handlers []string `json:"handlers"`
	// Containerd is what was found.
	Containerd Containerd `json:"containerd"`
	// Directories that were made, parents first.
	Directories []string `json:"directories"`
	// Files that were written, and links.
	Files []RecordedFile `json:"files"`
	// Edit is what was done to containerd's main file; nil: nothing.
	Edit *RecordedEdit `json:"edit,omitempty"`
}

// RecordedFile is a file or a link of ours.
type RecordedFile struct {
	Path string `json:"path"`
	// SHA256 of the content, in hexadecimal digits; of several while an
	// installation replaces another.
	SHA256 []string `json:"sha256,omitempty"`
	// Target is a link's.
	Target string `json:"target,omitempty"`
}

// RecordedEdit is a change of containerd's main file.
type RecordedEdit struct {
	Path string `json:"path"`
	// Import is the pattern that was added.
	Import string `json:"import"`
	// Existed says whether there was a file; then its bytes are in
	// PREFIX/install/original, with the mode and time they had.
	Existed bool      `json:"existed"`
	Mode    uint32    `json:"mode,omitempty"`
	UID     int       `json:"uid,omitempty"`
	GID     int       `json:"gid,omitempty"`
	Time    time.Time `json:"time,omitzero"`
	// Before and After are the digests of the file's content.
	Before string `json:"before,omitempty"`
	After  string `json:"after"`
}

const (
	recordFormat  = 1
	maxRecord     = 1 << 20
	maxRecordDeep = 8
	stateDir      = "install"
	recordName    = "record.json"
	originalName  = "original"
)

func (n *node) state(name string) string { return path.Join(n.prefix, stateDir, name) }

// load reads the record; nil without one.
func (n *node) load() (*Record, error) {
	p := n.state(recordName)
	f, err := n.Open(rel(p))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing is installed
	}
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", p, cause(err))
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", p, cause(err))
	}
	r, err := parseRecord(data)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w (it says what was installed; without it remove the files by hand: %s, containerd's drop-in and its import)", p, err, n.prefix)
	}
	return r, nil
}

func parseRecord(data []byte) (*Record, error) {
	var r Record
	if err := strictjson.Decode(data, &r, strictjson.Limits{Bytes: maxRecord, Depth: maxRecordDeep}); err != nil {
		return nil, err
	}
	if r.Format != recordFormat {
		return nil, fmt.Errorf("format: expected %d, got %d (another version of this program wrote it)", recordFormat, r.Format)
	}
	check := func(field, p string) error {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
			return fmt.Errorf("%s: expected a clean absolute path, got %q", field, p)
		}
		return nil
	}
	var problems []error
	for i, d := range r.Directories {
		problems = append(problems, check(fmt.Sprintf("directories[%d]", i), d))
	}
	for i, f := range r.Files {
		problems = append(problems, check(fmt.Sprintf("files[%d].path", i), f.Path))
		if (len(f.SHA256) == 0) == (f.Target == "") {
			problems = append(problems, fmt.Errorf("files[%d]: expected a digest or a target", i))
		}
	}
	if r.Edit != nil {
		problems = append(problems, check("edit.path", r.Edit.Path))
	}
	return &r, errors.Join(problems...)
}

// store writes the record.
func (n *node) store(r *Record) error {
	r.Format = recordFormat
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return n.write(n.state(recordName), 0o600, append(data, '\n'))
}

// file finds what the record says of a path.
func (r *Record) file(p string) *RecordedFile {
	if r == nil {
		return nil
	}
	if i := slices.IndexFunc(r.Files, func(f RecordedFile) bool { return f.Path == p }); i >= 0 {
		return &r.Files[i]
	}
	return nil
}
