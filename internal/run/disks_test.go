package run

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/podpolicy"
)

func TestParseVolume(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		text string
		want Volume
		err  string
	}{
		{"data=/a/b.img", Volume{"data", "/a/b.img", 0}, ""},
		{"data=b.img:64Mi", Volume{"data", "b.img", 64 << 20}, ""},
		{"a.b-c=/dev/sdb1", Volume{"a.b-c", "/dev/sdb1", 0}, ""},
		{"data", Volume{}, "expected NAME=FILE"},
		{"=f", Volume{}, "expected NAME=FILE"},
		{"data=", Volume{}, "expected NAME=FILE"},
		{"Data/x=f", Volume{}, "expected NAME=FILE"},
		{"data=f:", Volume{}, "data: size: "},
		{"data=f:lots", Volume{}, "data: size: "},
		{"data=f:1Mi", Volume{}, "expected 32Mi to 16Ti"},
		{"data=f:33554433", Volume{}, "units of 4Ki"},
		{"data=f:32Ti", Volume{}, "expected 32Mi to 16Ti"},
	} {
		got, err := ParseVolume(tc.text)
		if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %+v, %v", tc.text, got, err)
		}
	}
}

func TestOpenDisks(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	file := filepath.Join(dir, "data.img")
	o := Options{Scratch: 64 << 20, Volumes: []Volume{{"data", file, 32 << 20}}}
	d, err := openDisks(o)
	if err != nil {
		t.Fatal(err)
	}
	if d.scratch != "scratch" || len(d.disks) != 2 || d.disks[0].Serial != "scratch" || d.disks[1].Serial != d.serials["data"] || d.disks[1].BlockDevice {
		t.Errorf("got %+v", d)
	}
	for i, size := range []int64{64 << 20, 32 << 20} {
		if info, err := d.files[i].Stat(); err != nil || info.Size() != size || info.Mode().Perm() != 0o600 {
			t.Errorf("disk %d: %v, %v", i, info, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// The scratch disk is gone, the volume stays.
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "data.img" {
		t.Errorf("left: %v, %v", entries, err)
	}
	if none, err := openDisks(Options{}); err != nil || len(none.disks) != 0 || none.scratch != "" {
		t.Errorf("no disks: %+v, %v", none, err)
	}
	for _, tc := range []struct {
		volume Volume
		want   string
	}{
		{Volume{"data", file, 0}, ""},
		{Volume{"data", file, 32 << 20}, ""},
		{Volume{"data", file, 64 << 20}, "has 33554432 bytes, and not 67108864"},
		{Volume{"data", filepath.Join(dir, "absent"), 0}, "no such file"},
		{Volume{"data", filepath.Join(dir, "no/such/dir"), 32 << 20}, "no such file"},
		{Volume{"data", "/dev/null", 0}, "expected a file or a block device"},
	} {
		d, err := openDisks(Options{Volumes: []Volume{tc.volume}})
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v", tc.volume, err)
		}
		if err == nil {
			_ = d.Close()
		}
	}
}

func TestMatchVolumes(t *testing.T) {
	t.Parallel()
	policy := &podpolicy.Policy{Volumes: map[string]podpolicy.Volume{
		"data": {Kind: podpolicy.VolumeBlock, Key: "kbs:///a/b/c", Filesystem: "ext4"}, "tmp": {Kind: podpolicy.VolumeEphemeral},
	}}
	for _, tc := range []struct {
		names []string
		want  string
	}{
		{[]string{"data"}, ""},
		{nil, "volume data of the policy is a block volume, and no disk is given for it"},
		{[]string{"data", "tmp"}, "--volume tmp: expected a volume of kind block"},
		{[]string{"data", "x"}, "--volume x: the policy has no volume of that name"},
	} {
		var volumes []Volume
		for _, n := range tc.names {
			volumes = append(volumes, Volume{Name: n})
		}
		if err := matchVolumes(policy, volumes); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v", tc.names, err)
		}
	}
	// A volume's key is among what the trustee binds to the pod.
	uris, err := Resources(policy, InitdataOptions{}, nil)
	var got []string
	for _, u := range uris {
		got = append(got, u.String())
	}
	if d := cmp.Diff([]string{"kbs:///a/b/c"}, got); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestCheckDisks(t *testing.T) {
	t.Parallel()
	o := Options{Unsealed: true, Volumes: []Volume{{Name: "a"}, {Name: "a"}}}
	o.Guest.TEE = "soft"
	text := ""
	for _, err := range o.checkDisks() {
		text += err.Error() + "\n"
	}
	for _, want := range []string{"attested pod with a policy only", "--volume a: it is given twice"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
}
