// Testguest is the init process of a virtual machine in which package storage is
// tested: it does on its port org.coffer.test.0 what the test asks, one JSON
// document a line, and ends the machine when the port is closed.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/internal/guest/serial"
	"github.com/coffer-project/coffer/internal/guest/storage"
	"github.com/coffer-project/coffer/internal/guest/volume"
	"github.com/coffer-project/coffer/secret"
)

// request is a line from the test.
type request struct {
	Do string `json:"do"`

	Name, Serial, Dir, Path, Key, Filesystem, Text string
	Group                                          *uint32
	Size, Offset                                   int64
	Args                                           []string
}

// reply is the answer to it.
type reply struct {
	Error string `json:"error,omitempty"`
	Text  string `json:"text,omitempty"`
	// Values are numbers by name.
	Values map[string]int64 `json:"values,omitempty"`
}

type guest struct {
	reap    *reaper.Reaper
	disks   *storage.Manager
	volumes *volume.Manager
}

func main() {
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))
	reap, err := reaper.New(time.Now)
	if err == nil {
		err = run(context.Background(), log, reap)
	}
	if err != nil {
		fmt.Println("testguest:", err)
	}
	boot.PowerOff(log, reap.Idle, func(context.Context) {})
}

func run(ctx context.Context, log *slog.Logger, reap *reaper.Reaper) error {
	if _, err := boot.Run(ctx, log, boot.GuestPhases(&boot.Guest{})); err != nil {
		return err
	}
	go func() { _ = reap.Run(ctx) }()
	g := &guest{reap: reap, disks: storage.New(storage.Options{
		Logger: log, Rand: rand.Reader, Drivers: boot.LoadDiskModules, Reaper: reap, Mke2fs: "/usr/bin/mke2fs", Dir: "/run/disks",
	})}
	var err error
	if g.volumes, err = volume.NewManager("/run/volumes"); err != nil {
		return err
	}
	port, err := serial.System().Open(ctx, "org.coffer.test.0")
	if err != nil {
		return err
	}
	conn := port.Conn()
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var req request
		var out reply
		err := json.Unmarshal(lines.Bytes(), &req)
		if err == nil {
			out, err = g.do(ctx, req)
		}
		if err != nil {
			out.Error = err.Error()
		}
		b, err := json.Marshal(out)
		if err != nil {
			return err
		}
		if _, err := conn.Write(append(b, '\n')); err != nil {
			return err
		}
		if req.Do == "off" {
			return nil
		}
	}
	return lines.Err()
}

func (g *guest) do(ctx context.Context, r request) (reply, error) {
	switch r.Do {
	case "scratch":
		if err := os.MkdirAll(r.Dir, 0o711); err != nil {
			return reply{}, err
		}
		began := time.Now()
		err := g.disks.Scratch(ctx, r.Serial, r.Dir)
		if err == nil {
			g.volumes.UseDisk(g.disks)
		}
		return reply{Values: map[string]int64{"ms": time.Since(began).Milliseconds()}}, err
	case "volume":
		key, err := hex.DecodeString(r.Key)
		if err != nil {
			return reply{}, err
		}
		began := time.Now()
		o, err := g.disks.OpenVolume(ctx, storage.Volume{Name: r.Name, Serial: r.Serial, Key: secret.New(key), Filesystem: r.Filesystem, Group: r.Group})
		isNew := int64(0)
		if o.New {
			isNew = 1
		}
		return reply{Text: o.Device + " " + o.Dir, Values: map[string]int64{"ms": time.Since(began).Milliseconds(), "new": isNew}}, err
	case "directory":
		path, err := g.disks.Directory(r.Name, uint64(r.Size))
		return reply{Text: path}, err
	case "ephemeral":
		err := g.volumes.Ephemeral(r.Name, volume.Ephemeral{Bytes: uint64(r.Size), Memory: r.Text == "memory", Group: r.Group})
		return reply{Text: "/run/volumes/" + r.Name}, err
	case "close":
		return reply{}, errors.Join(g.volumes.Close(), g.disks.Close(ctx))
	case "off", "drivers":
		return reply{}, boot.LoadDiskModules(ctx)
	case "run":
		return g.run(ctx, r.Args)
	}
	return files(r)
}

// run runs a program.
func (g *guest) run(ctx context.Context, args []string) (reply, error) {
	out, w, err := os.Pipe()
	if err != nil {
		return reply{}, err
	}
	defer out.Close() //nolint:errcheck // read to its end
	p, err := g.reap.Start(args[0], args, &os.ProcAttr{Env: []string{"LC_ALL=C", "PATH=/usr/bin", "DM_DISABLE_UDEV=1"}, Files: []*os.File{nil, w, w}})
	_ = w.Close()
	if err != nil {
		return reply{}, err
	}
	said, err := io.ReadAll(out)
	if err != nil {
		return reply{}, err
	}
	status, err := p.Wait(ctx)
	return reply{Text: string(said), Values: map[string]int64{"code": int64(status.Code)}}, err
}

// files looks at and writes files.
func files(r request) (reply, error) {
	switch r.Do {
	case "write":
		// As a container does, which may not use more than its share.
		restore, err := unprivileged()
		if err != nil {
			return reply{}, err
		}
		defer restore()
		f, err := os.OpenFile(r.Path, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return reply{}, err
		}
		defer f.Close() //nolint:errcheck // synced below
		// The text, as often as it takes.
		block := []byte(strings.Repeat(r.Text, max(1, int(min(r.Size, 1<<20))/len(r.Text))))
		for at := r.Offset; at < r.Offset+max(r.Size, 1); at += int64(len(block)) {
			if n, err := f.WriteAt(block, at); err != nil {
				return reply{Values: map[string]int64{"written": at + int64(n)}}, err
			}
		}
		return reply{}, f.Sync()
	case "read":
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o644); err != nil {
			return reply{}, err
		}
		f, err := os.Open(r.Path)
		if err != nil {
			return reply{}, err
		}
		defer f.Close() //nolint:errcheck // read only
		b := make([]byte, max(r.Size, 1))
		n, err := f.ReadAt(b, r.Offset)
		if err == io.EOF {
			err = nil
		}
		return reply{Text: string(b[:n])}, err
	case "statfs":
		var s unix.Statfs_t
		if err := unix.Statfs(r.Path, &s); err != nil {
			return reply{}, err
		}
		return reply{Values: map[string]int64{
			"type": int64(s.Type), "size": int64(s.Blocks) * s.Bsize, "free": int64(s.Bavail) * s.Bsize, "flags": s.Flags, "inodes": int64(s.Files),
		}}, nil
	case "stat":
		var s unix.Stat_t
		if err := unix.Stat(r.Path, &s); err != nil {
			return reply{}, err
		}
		return reply{Values: map[string]int64{"mode": int64(s.Mode), "uid": int64(s.Uid), "gid": int64(s.Gid)}}, nil
	case "list":
		entries, err := os.ReadDir(r.Path)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return reply{Text: strings.Join(names, " ")}, err
	case "remove":
		return reply{}, os.RemoveAll(r.Path)
	}
	return reply{}, fmt.Errorf("testguest does not know %q", r.Do)
}

// unprivileged takes CAP_SYS_RESOURCE, with which quotas do not count, from this
// thread until restore is called.
func unprivileged() (restore func(), err error) {
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, err
	}
	old := data
	data[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(&header, &data[0]); err != nil {
		return nil, err
	}
	return func() {
		_ = unix.Capset(&header, &old[0])
		runtime.UnlockOSThread()
	}, nil
}
