package vmtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guest/guesttest"
)

// monitor speaks QEMU's machine protocol.
type monitor struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func openMonitor(t *testing.T, socket string) *monitor {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	m := &monitor{t, conn, bufio.NewReader(conn)}
	m.do(`{"execute": "qmp_capabilities"}`)
	return m
}

// do runs a command and waits for its answer.
func (m *monitor) do(command string) {
	m.t.Helper()
	if _, err := io.WriteString(m.conn, command+"\n"); err != nil {
		m.t.Fatal(err)
	}
	for {
		line, err := m.r.ReadBytes('\n')
		if err != nil {
			m.t.Fatal(err)
		}
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  json.RawMessage `json:"error"`
		}
		if err := json.Unmarshal(line, &answer); err != nil {
			m.t.Fatal(err)
		}
		if answer.Error != nil {
			m.t.Fatalf("%s: %s", command, answer.Error)
		}
		if answer.Return != nil {
			return
		}
	}
}

// run runs a script in a container to its end.
func (h *host) run(req *agentapi.CreateContainerRequest) string {
	h.t.Helper()
	ctx, id := h.t.Context(), req.GetContainerId()
	must[*agentapi.CreateContainerResponse](h.t)(h.CreateContainer(ctx, req))
	out := h.open(agentapi.StreamHeader_STDOUT, id)
	must[*agentapi.StartResponse](h.t)(h.Start(ctx, &agentapi.StartRequest{ContainerId: id}))
	text := must[[]byte](h.t)(io.ReadAll(out))
	must[*agentapi.WaitResponse](h.t)(h.Wait(ctx, &agentapi.WaitRequest{ContainerId: id}))
	return strings.TrimSpace(string(text))
}

// What an ordinary machine cannot show of an unsealed pod: disks that are plugged
// in, rules about devices, limits and figures of memory.
func TestUnsealedPodVM(t *testing.T) {
	dir := guesttest.ShortDir(t)
	disk := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(disk, append([]byte("from the host"), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	qmp := filepath.Join(dir, "qmp")
	v := start(t, "-qmp", "unix:"+qmp+",server=on,wait=off", "-device", "pcie-root-port,id=port0,slot=1")
	ref := registry(t)
	h := v.connect()
	ctx := t.Context()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(ctx, &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "web", Network: network()}))

	// The disk comes while the guest waits for it.
	attached := make(chan error, 1)
	go func() {
		_, err := h.AttachVolume(ctx, &agentapi.AttachVolumeRequest{Volume: "data", Disk: "late"})
		attached <- err
	}()
	m := openMonitor(t, qmp)
	m.do(fmt.Sprintf(`{"execute": "blockdev-add", "arguments": {"driver": "file", "node-name": "late", "filename": %q}}`, disk))
	m.do(`{"execute": "device_add", "arguments": {"driver": "virtio-blk-pci", "drive": "late", "serial": "late", "bus": "port0", "id": "late0"}}`)
	plugged := time.Now()
	if err := <-attached; err != nil {
		t.Fatal(err)
	}
	t.Logf("the guest has the disk after %v", time.Since(plugged))

	req := shell("db", ref, "dd if=/dev/xvda bs=13 count=1 2>/dev/null; echo; printf 'from the pod!' | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null && echo written; ulimit -Sn; ulimit -Hn; cat /proc/sys/net/ipv4/ip_unprivileged_port_start")
	req.Volumes = []*agentapi.Volume{{Name: "data", Kind: agentapi.Volume_BLOCK}}
	req.Devices = []*agentapi.Device{{Path: "/dev/xvda", Volume: "data"}}
	if got := h.run(req); got != "from the host\nwritten\n1024\n524288\n0" {
		t.Errorf("the container said %q", got)
	}
	if raw, err := os.ReadFile(disk); err != nil || !strings.HasPrefix(string(raw), "from the pod!") {
		t.Errorf("the disk has %q, %v", raw[:20], err)
	}

	// A node that a container makes itself opens nothing: only a privileged one
	// has the guest's devices.
	const own = "mknod /tmp/n b $(cat /sys/block/vda/dev | tr : ' '); dd if=/tmp/n bs=13 count=1 2>/dev/null || echo denied; ls /dev/vda 2>/dev/null; echo"
	req = shell("mknod", ref, own)
	req.Security = &agentapi.Security{Capabilities: []string{"MKNOD"}}
	if got := h.run(req); got != "denied" {
		t.Errorf("a container with MKNOD: %q", got)
	}
	req = shell("privileged", ref, own+"; mkdir /tmp/m && busybox mount -t tmpfs none /tmp/m && echo mounted; busybox test -w /sys/fs/cgroup/cgroup.procs && echo groups")
	req.Security = &agentapi.Security{SeccompUnconfined: true, Unmasked: true, Capabilities: strings.Fields(`AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND
		BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD
		NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE
		SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM`)}
	if got := strings.Join(strings.Fields(h.run(req)), " "); got != "from the pod!/dev/vda mounted groups" {
		t.Errorf("a privileged container: %q", got)
	}

	// Memory: figures, and an event for each process that is killed, before the
	// end of the container.
	req = shell("hungry", ref, "for i in 1 2; do /bin/sh -c 'x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done'; done; x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done")
	req.Resources = &agentapi.Resources{MemoryBytes: 16 << 20, CpuMillis: 900, Pids: 20}
	events := h.open(agentapi.StreamHeader_EVENTS, "")
	h.run(req)
	stats := must[*agentapi.StatsResponse](t)(h.Stats(ctx, &agentapi.StatsRequest{ContainerId: "hungry"}))
	t.Logf("stats: %v", stats)
	if stats.GetMemoryLimitBytes() != 16<<20 || stats.GetPidsLimit() != 20 || stats.GetOomKills() < 3 || stats.GetPageFaults() == 0 || stats.GetCpuUserNs() == 0 ||
		stats.GetCpuUserNs()+stats.GetCpuSystemNs() > stats.GetCpuUsageNs()+uint64(time.Millisecond) || stats.GetCpuPeriods() == 0 {
		t.Errorf("stats %v", stats)
	}
	told := uint64(0)
	for {
		var e agentapi.Event
		if err := channel.ReadMessage(events, &e); err != nil {
			t.Fatal(err)
		}
		if e.GetOom().GetContainerId() == "hungry" {
			told++
		}
		if e.GetExit().GetContainerId() == "hungry" {
			break
		}
	}
	if told != stats.GetOomKills() {
		t.Errorf("%d kills were told, there were %d", told, stats.GetOomKills())
	}
	must[*agentapi.ShutdownResponse](t)(h.Shutdown(ctx, &agentapi.ShutdownRequest{}))
}
