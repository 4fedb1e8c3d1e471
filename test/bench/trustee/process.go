package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is a process that serves HTTPS.
type server struct {
	cmd     *exec.Cmd
	url     string
	roots   *x509.CertPool
	rootPEM []byte
	// start is from exec to ready.
	start time.Duration
	log   *os.File
}

const startLimit = time.Minute

// startServer runs a program and waits until url answers path with 200.
func startServer(ctx context.Context, log, address, root, path string, name string, args ...string) (*server, error) {
	s := &server{url: "https://" + address}
	var err error
	if s.log, err = os.Create(log); err != nil {
		return nil, err
	}
	s.cmd = exec.CommandContext(ctx, name, args...)
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.WaitDelay = 20 * time.Second
	s.cmd.Stderr = s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begun := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, errors.Join(err, s.log.Close())
	}
	if err := s.wait(ctx, root, path, begun); err != nil {
		text, _ := os.ReadFile(log)
		return nil, errors.Join(fmt.Errorf("%s: %w\n%s", name, err, text), s.stop())
	}
	return s, nil
}

func (s *server) wait(ctx context.Context, root, path string, begun time.Time) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for time.Since(begun) < startLimit {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		pem, err := os.ReadFile(root)
		if err != nil {
			continue
		}
		s.roots, s.rootPEM = x509.NewCertPool(), pem
		s.roots.AppendCertsFromPEM(pem)
		if s.get(ctx, path) == nil {
			s.start = time.Since(begun)
			return nil
		}
	}
	return errors.New("does not become ready")
}

func (s *server) get(ctx context.Context, path string) error {
	c := s.client()
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("status %s", resp.Status))
	}
	return err
}

func (s *server) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	err := s.cmd.Wait()
	return errors.Join(err, s.log.Close())
}

// ticks is the kernel's USER_HZ, which is 100 on every Linux that Go runs on.
const ticks = 100

// cpu is the process's user and system time.
func (s *server) cpu() (user, system time.Duration, err error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "stat"))
	if err != nil {
		return 0, 0, err
	}
	_, rest, ok := strings.Cut(string(text), ") ") // the name may hold spaces
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, 0, errors.New("/proc/PID/stat has another form")
	}
	u, err1 := strconv.ParseInt(fields[11], 10, 64)
	k, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(u) * time.Second / ticks, time.Duration(k) * time.Second / ticks, errors.Join(err1, err2)
}

// resident is the most memory the process has had, in MiB.
func (s *server) resident() (float64, error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "status"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // read only
	for scan := bufio.NewScanner(f); scan.Scan(); {
		if v, ok := strings.CutPrefix(scan.Text(), "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("/proc/PID/status has no VmHWM")
}

// freeAddress is a loopback address that was free a moment ago.
func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
