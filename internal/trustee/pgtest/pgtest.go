// Package pgtest starts PostgreSQL for tests: a server of its own in a
// temporary directory, reachable over a Unix socket, stopped when the test
// ends. Tests skip where Debian's package postgresql is not installed, and fail
// there when COFFER_REQUIRE_SERVERS=1.
//
// Only tests import it. It does not import package testing, so that it may be
// linted like what it stands beside.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// TB is what of testing.TB is needed.
type TB interface {
	Helper()
	Cleanup(f func())
	Context() context.Context
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Logf(format string, args ...any)
}

// Mode is how a server is stopped.
type Mode int

// Modes of [Server.Restart] and [Server.Stop].
const (
	// Fast ends all connections and writes everything out ("pg_ctl -m fast").
	Fast Mode = iota
	// Immediate stops at once; the next start recovers from the log.
	Immediate
)

// Option changes how a server runs.
type Option func(*Server)

// Durable keeps fsync on: for measurements, not needed for tests, which end
// the server and never the machine.
func Durable() Option { return func(s *Server) { s.durable = true } }

// Setting adds a line of postgresql.conf, such as "max_connections=20".
func Setting(line string) Option { return func(s *Server) { s.settings = append(s.settings, line) } }

// Server is a running PostgreSQL.
type Server struct {
	tb       TB
	bin, dir string
	cred     *syscall.Credential
	durable  bool
	settings []string

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{}
	dbs   int
}

const startTimeout = 60 * time.Second

// Start makes a database cluster and starts a server on it. It takes about a
// second.
func Start(tb TB, opts ...Option) *Server {
	tb.Helper()
	bin, err := find()
	if err != nil {
		missing(tb, err)
	}
	s := &Server{tb: tb, bin: bin}
	for _, o := range opts {
		o(s)
	}
	if err := s.create(); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	tb.Cleanup(func() {
		s.Stop(Immediate)
		if err := os.RemoveAll(s.dir); err != nil {
			tb.Logf("pgtest: %v", err)
		}
	})
	s.Resume()
	return s
}

func missing(tb TB, err error) {
	tb.Helper()
	if os.Getenv("COFFER_REQUIRE_SERVERS") == "1" {
		tb.Fatalf("pgtest: %v, and COFFER_REQUIRE_SERVERS=1", err)
	}
	tb.Skipf("pgtest: %v", err)
}

// find returns the directory of the newest version's programs.
func find() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	if p, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, p)
	}
	if len(dirs) == 0 {
		return "", errors.New("no PostgreSQL server here (apt-get install postgresql)")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path)))) // 0 where the path does not say
		return n
	}
	return filepath.Dir(slices.MaxFunc(dirs, func(a, b string) int { return version(a) - version(b) })), nil
}

// create makes the directory and runs initdb. The path is short: that of a
// Unix socket has room for some hundred bytes.
func (s *Server) create() error {
	var err error
	if s.dir, err = os.MkdirTemp("", "pgtest"); err != nil {
		return err
	}
	// PostgreSQL refuses to run as root.
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return err
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2, os.Chown(s.dir, int(uid), int(gid))); err != nil {
			return err
		}
		s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "initdb"), "-D", s.data(), "-U", "postgres", "-A", "trust",
		"-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions")
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	conf := append([]string{"listen_addresses=''", "unix_socket_directories='" + s.dir + "'", "max_connections=200",
		"shared_buffers=64MB", "max_wal_size=256MB", "log_line_prefix='%m [%p] '"}, s.settings...)
	if !s.durable {
		conf = append(conf, "fsync=off", "full_page_writes=off")
	}
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n" + strings.Join(conf, "\n") + "\n")
	return errors.Join(err, f.Close())
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// Dir is the directory of the server's socket, .s.PGSQL.5432, and of its log.
func (s *Server) Dir() string { return s.dir }

// Resume starts the server after [Server.Stop] and waits until it answers.
func (s *Server) Resume() {
	s.tb.Helper()
	if err := s.resume(); err != nil {
		log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		s.tb.Fatalf("pgtest: %v\n%s", err, log[max(0, len(log)-4096):])
	}
}

func (s *Server) resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the server has its own
	// The server ends with the test, see Stop, also where the test is killed.
	cmd := exec.CommandContext(context.Background(), filepath.Join(s.bin, "postgres"), "-D", s.data())
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGQUIT}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ends is told by who waits for it
		close(ended)
	}()
	s.cmd, s.ended = cmd, ended
	return s.await(ended)
}

func (s *Server) await(ended chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := pgx.Connect(ctx, s.url("postgres"))
		if err == nil {
			return c.Close(ctx)
		}
		select {
		case <-ended:
			return errors.New("the server ended")
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w", err)
		case <-tick.C:
		}
	}
}

// Stop stops the server; its data stays for [Server.Resume].
func (s *Server) Stop(m Mode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	how := syscall.SIGINT
	if m == Immediate {
		how = syscall.SIGQUIT
	}
	_ = s.cmd.Process.Signal(how) // it may have ended already
	<-s.ended
	s.cmd = nil
}

// Restart is [Server.Stop] and [Server.Resume].
func (s *Server) Restart(m Mode) {
	s.tb.Helper()
	s.Stop(m)
	s.Resume()
}

// URL makes a new empty database and returns its URL. With an empty name it
// makes one up.
func (s *Server) URL(name string) string {
	s.tb.Helper()
	u, err := s.database(s.tb.Context(), name)
	if err != nil {
		s.tb.Fatalf("pgtest: %v", err)
	}
	return u
}

func (s *Server) database(ctx context.Context, name string) (string, error) {
	s.mu.Lock()
	s.dbs++
	if name == "" {
		name = "test" + strconv.Itoa(s.dbs)
	}
	s.mu.Unlock()
	c, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return "", err
	}
	_, err = c.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	return s.url(name), errors.Join(err, c.Close(ctx))
}

func (s *Server) url(db string) string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/" + db, RawQuery: url.Values{"host": {s.dir}}.Encode()}
	return u.String()
}
