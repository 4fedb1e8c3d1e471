package kmod_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/guestimage/elftest"
	"github.com/coffer-project/coffer/internal/guestimage/kmod"
)

func TestRead(t *testing.T) {
	t.Parallel()
	got, err := kmod.Read(elftest.Module("virtio_net", "6.12.1-cloud", "net-failover", "virtio"))
	if err != nil {
		t.Fatal(err)
	}
	want := kmod.Info{Name: "virtio_net", Depends: []string{"net_failover", "virtio"}, Vermagic: "6.12.1-cloud SMP preempt"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for want, data := range map[string][]byte{
		"not a kernel module: bad magic":           []byte("not ELF, but longer than a magic number"),
		"not a kernel module: no section .modinfo": elftest.Object{}.Bytes(),
		"not a kernel module: .modinfo has no":     elftest.Object{Modinfo: []string{"license=GPL"}}.Bytes(),
	} {
		if _, err := kmod.Read(data); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("expected %q, got %v", want, err)
		}
	}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	graph := map[string][]string{
		"a": {"b", "c"}, "b": {"c"}, "c": nil, "x_y": {"c", "builtin"}, "loop1": {"loop2"}, "loop2": {"loop1"}, "broken": {"missing"},
	}
	depends := func(name string) ([]string, bool, error) {
		if name == "builtin" {
			return nil, false, nil
		}
		deps, ok := graph[name]
		if !ok {
			return nil, false, fmt.Errorf("no module %s", name)
		}
		return deps, true, nil
	}
	got, err := kmod.Order([]string{"x-y", "a", "c"}, depends)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"c", "x_y", "b", "a"}, got); diff != "" {
		t.Error(diff)
	}
	for wanted, want := range map[string]string{
		"loop1":  "module loop1: module loop2: module loop1 depends on itself",
		"broken": "module broken: no module missing",
	} {
		if _, err := kmod.Order([]string{wanted}, depends); err == nil || err.Error() != want {
			t.Errorf("%s: expected %q, got %v", wanted, want, err)
		}
	}
}

func TestStripSignature(t *testing.T) {
	t.Parallel()
	module := []byte("the module")
	sign := func(size uint32) []byte {
		signed := append(bytes.Clone(module), "signature"...)
		signed = append(signed, 0, 0, 2, 0, 0, 0, 0, 0)
		signed = binary.BigEndian.AppendUint32(signed, size)
		return append(signed, "~Module signature appended~\n"...)
	}
	for _, data := range [][]byte{module, sign(uint32(len("signature")))} {
		got, err := kmod.StripSignature(data)
		if err != nil || !bytes.Equal(got, module) {
			t.Errorf("got %q, %v", got, err)
		}
	}
	for _, data := range [][]byte{sign(20), sign(1 << 31), []byte("short~Module signature appended~\n")} {
		if got, err := kmod.StripSignature(data); err == nil {
			t.Errorf("%q: got %q, expected an error", data, got)
		}
	}
}
