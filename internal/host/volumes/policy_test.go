package volumes

import (
	"context"
	"crypto/sha256"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

const manifest = `apiVersion: v1
kind: Pod
metadata:
  name: web
  annotations:
    coffer-project.io/secure-mount.raw: '{"key":"kbs:///shop/web/raw"}'
    coffer-project.io/secure-mount.data: '{"key":"kbs:///shop/web/data","mount":"/var/lib/web"}'
spec:
  securityContext: {fsGroup: 2000}
  containers:
  - name: web
    image: registry.example/web
    volumeMounts:
    - {name: config, mountPath: /etc/web}
    - {name: config, mountPath: /etc/one.conf, subPath: one.conf}
    - {name: config, mountPath: /etc/sub, subPath: sub}
    - {name: tls, mountPath: /tls, readOnly: true}
    - {name: info, mountPath: /info}
    - {name: scratch, mountPath: /scratch}
    - {name: scratch, mountPath: /part, subPath: a/b}
    - {name: memory, mountPath: /dev/shm}
    volumeDevices:
    - {name: raw, devicePath: /dev/xvda}
    - {name: data, devicePath: /dev/xvdb}
  - name: sidecar
    image: registry.example/sidecar
    volumeMounts: [{name: scratch, mountPath: /in, readOnly: true}]
  volumes:
  - {name: config, configMap: {name: config, items: [{key: one, path: one.conf}, {key: two, path: sub/two.conf}]}}
  - {name: tls, secret: {secretName: tls, optional: true}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: scratch, emptyDir: {sizeLimit: 1Gi}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 64Mi}}
  - {name: raw, persistentVolumeClaim: {claimName: raw}}
  - {name: data, persistentVolumeClaim: {claimName: data}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: config}, data: {one: "1", two: "2"}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: raw}, spec: {volumeMode: Block}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, spec: {volumeMode: Block}}
`

type images struct{}

func (images) Image(_ context.Context, reference string) (*kube.Image, error) {
	return &kube.Image{Digest: "sha256:" + strings.Repeat("0b", 32), From: []string{reference}, Config: podpolicy.ImageConfig{Entrypoint: []string{"/entry"}},
		Accounts: func(context.Context) ([]byte, []byte, error) { return nil, nil, nil }}, nil
}

// sealedGuest is a guest that a policy rules.
type sealedGuest struct {
	*fakeGuest
	guard *podpolicy.Guard
}

func (g *sealedGuest) Agent() agentapi.AgentService { return g }

func (g *sealedGuest) PutFiles(ctx context.Context, req *agentapi.PutFilesRequest) (*agentapi.PutFilesResponse, error) {
	update, err := g.guard.PutFiles(req.GetVolume(), req.GetVersion())
	if err != nil {
		return nil, err
	}
	resp, err := g.fakeGuest.PutFiles(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := g.judge(update, g.latest(req.GetVolume())); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	return resp, nil
}

func (g *sealedGuest) judge(update *podpolicy.FilesUpdate, files contents) error {
	for name, text := range files {
		_, content, _ := strings.Cut(text[4:], " ")
		if _, err := update.File(name, int64(len(content))); err != nil {
			return err
		}
		if err := update.Content(name, int64(len(content)), sha256.Sum256([]byte(content))); err != nil {
			return err
		}
	}
	return update.Commit(func() error { return nil })
}

func (g *sealedGuest) AttachVolume(ctx context.Context, req *agentapi.AttachVolumeRequest) (*agentapi.AttachVolumeResponse, error) {
	if err := g.guard.Attach(req.GetVolume(), req.GetDisk()); err != nil {
		return nil, err
	}
	return g.fakeGuest.AttachVolume(ctx, req)
}

func (g *sealedGuest) Open(ctx context.Context, h *agentapi.StreamHeader) (net.Conn, error) {
	return g.fakeGuest.Open(ctx, h)
}

// admit asks the policy what it makes of a proposal, which the guest carries over
// in the same way (internal/guest/agent).
func (g *sealedGuest) admit(id, name string, p *Proposal) error {
	q := podpolicy.ContainerProposal{ID: id, Name: name, TerminationPath: p.TerminationPath}
	for _, m := range p.Mounts {
		q.Mounts = append(q.Mounts, podpolicy.Mount{Path: m.GetPath(), Volume: m.GetVolume(), SubPath: m.GetSubPath(), ReadOnly: m.GetReadOnly()})
	}
	kinds := map[agentapi.Volume_Kind]podpolicy.ClaimedKind{
		agentapi.Volume_EPHEMERAL: podpolicy.ClaimEphemeral, agentapi.Volume_MEMORY: podpolicy.ClaimMemory,
		agentapi.Volume_FILES: podpolicy.ClaimFiles, agentapi.Volume_BLOCK: podpolicy.ClaimBlock,
	}
	for _, v := range p.Volumes {
		q.Volumes = append(q.Volumes, podpolicy.VolumeClaim{Name: v.GetName(), Kind: kinds[v.GetKind()], SizeBytes: v.GetSizeBytes(), Group: v.Group})
	}
	for _, d := range p.Devices {
		q.Devices = append(q.Devices, podpolicy.Device{Path: d.GetPath(), Volume: d.GetVolume(), ReadOnly: d.GetReadOnly()})
	}
	_, err := g.guard.Admit(q)
	return err
}

// What is found in the kubelet's directory of a prepared pod is what its policy
// expects, by every name.
func TestPreparedPod(t *testing.T) {
	t.Parallel()
	needMounts(t)
	in, err := kube.Load([]kube.File{{Name: "web.yaml", Data: []byte(manifest)}})
	if err != nil {
		t.Fatal(err)
	}
	result, err := kube.Generate(t.Context(), in, kube.Options{Images: images{}})
	if err != nil {
		t.Fatal(err)
	}
	policy := result.Workloads[0].Policy
	text, err := policy.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	k := newKubelet(t)
	raw, err := (&initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: map[string]string{initdata.KeyPodPolicy: string(text)}}).Encode()
	k.check(err)
	gz, err := initdata.Compress(raw)
	k.check(err)
	g := &sealedGuest{newGuest(), podpolicy.NewGuard(policy)}
	if _, err := g.guard.Sandbox(podpolicy.SandboxProposal{ID: "pod", PodName: "web", PodNamespace: "default", Hostname: "web"}); err != nil {
		t.Fatal(err)
	}

	config := k.volume(pluginConfigMap, "config", map[string]string{"one.conf": "1", "sub/two.conf": "2"})
	tls := k.volume(pluginSecret, "tls", nil)
	info := k.volume(pluginDownwardAPI, "info", map[string]string{"labels": `app="web"`})
	token := k.volume(pluginProjected, "kube-api-access-7xk2z", map[string]string{"token": "t", "ca.crt": "c", "namespace": "default"})
	scratch, memory := k.mkdir("volumes/"+pluginEmptyDir+"/scratch"), k.mkdir("volumes/"+pluginEmptyDir+"/memory")
	k.mkdir("volumes/" + pluginEmptyDir + "/scratch/a/b")
	k.tmpfs(memory, "size=64m")
	var devices []specs.LinuxDevice
	for i, path := range []string{"/dev/xvda", "/dev/xvdb"} {
		node, dev := loop(t)
		k.claim([]string{"pv-raw", "pv-data"}[i], node)
		dev.Path = path
		devices = append(devices, dev)
	}
	tokenAt := bind(token.dir, "/var/run/secrets/kubernetes.io/serviceaccount", "ro")
	m, w := k.manager(func(o *Options) { o.Sealed, o.Initdata = true, gz })
	web := Container{ID: "c1", Name: "web", Devices: devices, Mounts: append(specMounts(k),
		bind(config.dir, "/etc/web", "ro"), bind(k.subPath("config", "web", 1, filepath.Join(config.dir, "one.conf")), "/etc/one.conf", "ro"),
		bind(k.subPath("config", "web", 2, filepath.Join(config.dir, "sub")), "/etc/sub", "ro"), bind(tls.dir, "/tls", "ro"), bind(info.dir, "/info", "ro"),
		bind(scratch, "/scratch", "rw"), bind(k.subPath("scratch", "web", 6, filepath.Join(scratch, "a/b")), "/part", "rw"), bind(memory, "/dev/shm", "rw"), tokenAt)}
	p := prepare(t, m, g, web)
	if err := g.admit("c1", "web", p); err != nil {
		t.Errorf("the policy refuses what its own pod has: %v\n%v", err, p)
	}
	p = prepare(t, m, g, Container{ID: "c2", Name: "sidecar", Mounts: append(specMounts(k)[:6:6], bind(scratch, "/in", "ro"), tokenAt)})
	if err := g.admit("c2", "sidecar", p); err != nil {
		t.Errorf("the policy refuses what its own pod has: %v\n%v", err, p)
	}
	if len(g.attached) != 2 || !strings.HasPrefix(g.attached[0], "raw=") || !strings.HasPrefix(g.attached[1], "data=") {
		t.Errorf("disks: %v", g.attached)
	}
	// What the policy pins stays as it is; what it leaves to the host changes.
	token.swap(map[string]string{"token": "t2", "ca.crt": "c", "namespace": "default"})
	await(t, "the new token", func() bool { return g.latest("kube-api-access")["token"] == "0644 t2" })
	config.swap(map[string]string{"one.conf": "another", "sub/two.conf": "2"})
	await(t, "a warning", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.all) > 0 })
	w.has(t, "volume config: the containers keep the files that they have: the guest did not take the files: ")
	w.has(t, "files.digest")
}
