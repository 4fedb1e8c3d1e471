package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/internal/guest/serial"
)

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	start := boot.NewMark("start")
	var g boot.Guest
	marks, err := boot.Run(context.Background(), log, boot.GuestPhases(&g))
	fmt.Println(start.At)
	for _, m := range marks {
		fmt.Println(m.Name, m.At, m.TSC)
	}
	fmt.Printf("%+v %v\n", g, err)
	r := reaper.New(time.Now)
	go r.Run(context.Background())
	p, err := serial.System().Open(context.Background(), "org.coffer.agent.0")
	m := boot.NewMark("port")
	fmt.Println(m.At, p, err)
	go func() {
		for {
			c := p.Conn()
			b := make([]byte, 100)
			for {
				n, err := c.Read(b)
				fmt.Printf("serial %q %v\n", b[:n], err)
				if err != nil {
					break
				}
				c.Write(b[:n])
			}
		}
	}()
	c, err := container.NewCrun(container.Options{Path: "/usr/bin/crun", StateDir: "/run/s", BundleDir: "/run/b", CgroupRoot: "/sys/fs/cgroup", CgroupParent: "/coffer", Reaper: r, Logger: log})
	fmt.Println(err)
	spec, err := container.Spec(container.Config{Rootfs: "/ctr", Args: []string{"/bin/sh", "-c", "mount; ls -l /dev; id; cat /proc/self/status | grep -i -e cap -e secc; exit 5"}, Env: []string{"PATH=/bin"}, Capabilities: []string{"CAP_KILL"}, Limits: container.Limits{MemoryBytes: 64 << 20, PIDs: 20, CPUMillis: 1500}})
	fmt.Println(err)
	t := time.Now()
	ctr, err := c.Create(context.Background(), "x", spec, container.IO{})
	fmt.Println(err)
	if err == nil {
		fmt.Println(ctr.Start(context.Background()), time.Since(t))
		go io.Copy(os.Stdout, ctr.Init.Stdout)
		go io.Copy(os.Stdout, ctr.Init.Stderr)
		fmt.Println(ctr.Init.Wait(context.Background()))
		fmt.Println(ctr.Stats())
		fmt.Println(ctr.Delete(context.Background()))
	}
	spec, _ = container.Spec(container.Config{Rootfs: "/ctr", Args: []string{"/bin/sh", "-c", "x=aaaaaaaaaaaaaaaaaaaaaaaa; while true; do x=$x$x; done"}, Env: []string{"PATH=/bin"}, Limits: container.Limits{MemoryBytes: 16 << 20, PIDs: 20, CPUMillis: 1500}})
	ctr, err = c.Create(context.Background(), "oom", spec, container.IO{})
	fmt.Println(err)
	go ctr.WatchOOM(context.Background(), func() { fmt.Println("OOM!") })
	ctr.Start(context.Background())
	fmt.Println(ctr.Init.Wait(context.Background()))
	fmt.Println(ctr.OOMKills())
	fmt.Println(ctr.Delete(context.Background()))
	b, _ := os.ReadFile("/proc/self/status")
	os.Stdout.Write(b)
	b, _ = os.ReadFile("/proc/stat")
	os.Stdout.Write(b[:200])
	time.Sleep(3 * time.Second)
	b, _ = os.ReadFile("/proc/self/stat")
	os.Stdout.Write(b)
	boot.PowerOff(log, r.Idle)
}
