package serial

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// portPair is a port whose host end is the returned file. A socket stands in
// for the device; "no host" is tested in a real virtual machine.
func portPair(t *testing.T) (*Port, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	port, err := newPort("test", os.NewFile(uintptr(fds[0]), "guest"))
	if err != nil {
		t.Fatal(err)
	}
	host := os.NewFile(uintptr(fds[1]), "host")
	t.Cleanup(func() { port.Close(); host.Close() })
	return port, host
}

func TestConnCarriesBytes(t *testing.T) {
	t.Parallel()
	port, host := portPair(t)
	conn := port.Conn()
	want := bytes.Repeat([]byte("coffer"), 100_000)
	go func() { _, _ = conn.Write(want) }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(host, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("guest to host: %v", err)
	}
	go func() { _, _ = host.Write(want) }()
	clear(got)
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("host to guest: %v", err)
	}
}

func TestCloseWakesReaderAndWriter(t *testing.T) {
	t.Parallel()
	port, host := portPair(t)
	for range 3 {
		conn := port.Conn()
		errs := make(chan error, 2)
		go func() { _, err := conn.Read(make([]byte, 1)); errs <- err }()
		go func() { _, err := conn.Write(make([]byte, 64<<20)); errs <- err }()
		if _, err := host.Read(make([]byte, 1)); err != nil { // the writer is under way
			t.Fatal(err)
		}
		conn.Close()
		for range 2 {
			if err := <-errs; !errors.Is(err, os.ErrClosed) {
				t.Errorf("error = %v, want closed", err)
			}
		}
		if _, err := conn.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
	}
	// The port serves the next host all the same.
	drain(t, host)
	conn := port.Conn()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(host, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// drain takes what an ended connection had written already.
func drain(t *testing.T, f *os.File) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for {
		if err := f.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Read(buf); err != nil {
			_ = f.SetReadDeadline(time.Time{})
			return
		}
	}
}

func TestHostLeaves(t *testing.T) {
	t.Parallel()
	port, host := portPair(t)
	conn := port.Conn()
	if _, err := host.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	host.Close()
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "hi" {
		t.Errorf("got %q, %v, want hi and the end", got, err)
	}
}

func TestANewConnEndsTheOldOne(t *testing.T) {
	t.Parallel()
	port, host := portPair(t)
	first := port.Conn()
	second := port.Conn()
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read of the first: %v", err)
	}
	if _, err := host.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	// Closing the first again must not disturb the second.
	first.Close()
	if _, err := second.Write([]byte("x")); err != nil {
		t.Error(err)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	sys := t.TempDir()
	for dev, name := range map[string]string{"vport0p1": "org.coffer.agent.0\n", "vport0p2": "org.coffer.softtee.0\n"} {
		dir := filepath.Join(sys, "class/virtio-ports", dev)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "name"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(sys, "class/virtio-ports/vport0p0"), 0o755); err != nil {
		t.Fatal(err) // a console port has no name
	}
	f := Finder{Sys: sys, Dev: "/dev"}
	if got, err := f.find("org.coffer.softtee.0"); err != nil || got != "/dev/vport0p2" {
		t.Errorf("find = %q, %v", got, err)
	}
	if f.Has("org.coffer.other") {
		t.Error("a port that is not there was found")
	}
	empty := Finder{Sys: t.TempDir(), Dev: "/dev"}
	if empty.Has("org.coffer.agent.0") {
		t.Error("a port was found in an empty tree")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := empty.Open(ctx, "org.coffer.agent.0"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open = %v, want the deadline", err)
	}
}
