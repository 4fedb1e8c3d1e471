package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/seal"
)

// wantEmpty checks that a refused restore has kept nothing: the right backup
// can still be restored.
func wantEmpty(t *testing.T, o Options) {
	t.Helper()
	if o.Path != "" {
		if _, err := os.Lstat(o.Path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a refused restore left a database: %v", err)
		}
	}
}

func TestRestoreRefusals(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := newTestClock()
			s := openData(t, dataOptions(t, "sqlite", c.now))
			if err := s.CreateTenant(t.Context(), acme, "Acme"); err != nil {
				t.Fatal(err)
			}
			fillEverything(t, s, c)
			whole := backupOf(t, s)
			o := dataOptions(t, kind, c.now)
			refused := func(name string, o Options, data []byte, want string) {
				t.Helper()
				if err := Restore(t.Context(), o, bytes.NewReader(data)); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: got %v, want %q", name, err, want)
				}
				wantEmpty(t, o)
			}
			for _, n := range []int{0, 1, 100, len(whole) / 2, len(whole) - 9, len(whole) - 1} {
				refused(fmt.Sprintf("cut to %d bytes", n), o, whole[:n], "backup: ")
			}
			for name, tc := range map[string]struct {
				change func(string) string
				want   string
			}{
				// Whoever alters a backup can make the sums fit, and not the seal.
				"policy altered": {func(s string) string { return resum(strings.Replace(s, "package policy", "package polity", 1)) }, "seal: belongs to another backup"},
				"admin added":    {func(s string) string { return resum(strings.Replace(s, `"ann"`, `"eve"`, 1)) }, "seal: belongs to another backup"},
				"seal removed":   {func(s string) string { return regexp.MustCompile(`"seal":"[^"]*"`).ReplaceAllString(s, `"seal":""`) }, "seal: "},
				"unknown table": {func(s string) string {
					return resum(strings.Replace(s, `{"name":"bindings"`, `{"name":"sqlite_master"`, 1))
				}, "expected one of"},
				"hostile table": {func(s string) string {
					return resum(strings.Replace(s, `{"name":"bindings"`, `{"name":"x; DROP TABLE y"`, 1))
				}, "expected one of"},
				"unknown column": {func(s string) string { return resum(strings.Replace(s, `"name":"initdata"`, `"name":"x) --"`, 1)) }, "expected the columns"},
				"column kind": {func(s string) string {
					return resum(strings.Replace(s, `"name":"initdata","kind":"text"`, `"name":"initdata","kind":"int"`, 1))
				}, "expected the columns"},
				"table missing": {withoutTable("bindings"), "expected the tables bindings too"},
				"keys missing":  {withoutTable("data_keys"), "expected the tables data_keys too"},
				"row twice": {func(s string) string {
					return resum(regexp.MustCompile(`\["acme","demo",[^\n]*\n`).ReplaceAllString(s, "$0$0"))
				}, "onstraint"},
				"newer schema":    {func(s string) string { return resum(strings.Replace(s, `"schema":3`, `"schema":4`, 1)) }, "use a newer coffer-trustee"},
				"older schema":    {func(s string) string { return resum(strings.Replace(s, `"schema":3`, `"schema":2`, 1)) }, "expected 3, got 2"},
				"NUL in the text": {func(s string) string { return resum(strings.Replace(s, `"ann"`, `"a\u0000"`, 1)) }, ""},
			} {
				refused(name, o, recompress(t, whole, tc.change), tc.want)
			}
			other := o
			other.KEK = testKEK(t, 8)
			refused("another KEK", other, whole, "restore that key first")
			refused("another KEK that claims to be it", withKEK(o, namedKEK{other.KEK, o.KEK.ID()}), whole, "backup: ")

			cancelled, cancel := context.WithCancel(t.Context())
			cancel()
			if err := Restore(cancelled, o, bytes.NewReader(whole)); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: got %v", err)
			}
			wantEmpty(t, o)

			// After all of that, the right one goes in, and only once.
			checkEverything(t, restored(t, o, whole))
			if err := Restore(t.Context(), o, bytes.NewReader(whole)); !errors.Is(err, ErrExists) {
				t.Errorf("into a database that is not empty: got %v", err)
			}
			fresh := dataOptions(t, kind, c.now)
			if err := openData(t, fresh).Close(); err != nil {
				t.Fatal(err)
			}
			if err := Restore(t.Context(), fresh, bytes.NewReader(whole)); !errors.Is(err, ErrExists) {
				t.Errorf("into a new trustee's database: got %v", err)
			}
			if s := openData(t, fresh); s.Ping(t.Context()) != nil {
				t.Error("a refused restore harmed what was there")
			}
		})
	}
}

// namedKEK claims another key's ID.
type namedKEK struct {
	seal.KEK
	id string
}

func (k namedKEK) ID() string { return k.id }

func withKEK(o Options, k seal.KEK) Options {
	o.KEK = k
	return o
}

// resum gives a changed backup the sum it would need.
func resum(s string) string {
	i := strings.LastIndex(s, `{"end"`)
	sum := sha256.Sum256([]byte(s[:i]))
	return s[:i] + regexp.MustCompile(`"sha256":"[0-9a-f]*"`).ReplaceAllString(s[i:], `"sha256":"`+hex.EncodeToString(sum[:])+`"`)
}

// withoutTable leaves a table out, and its count.
func withoutTable(name string) func(string) string {
	return func(s string) string {
		var out strings.Builder
		skip := false
		for line := range strings.Lines(s) {
			switch {
			case strings.HasPrefix(line, `{"table"`):
				skip = strings.HasPrefix(line, `{"table":{"name":"`+name+`"`)
			case strings.HasPrefix(line, `{"end"`):
				skip = false
				line = regexp.MustCompile(`"`+name+`":\d+,?`).ReplaceAllString(line, "")
			}
			if !skip {
				out.WriteString(line)
			}
		}
		return resum(out.String())
	}
}
