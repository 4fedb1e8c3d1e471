package vtpm

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee/measure/peimage"
	"github.com/coffer-project/coffer/tee/measure/qemuload"
)

// This package's reader of images and its patched kernels against those of
// tee/measure: they agree wherever both give a result. The latter refuse more:
//
//   - sections that overlap each other or the headers, and an optional header too
//     small for its own fields (edk2 hashes such a file, or does not load it at all;
//     no kernel is made like this);
//   - kernels that are not loaded high, for which QEMU uses other addresses than
//     this package predicts, and "vga=".
//
// and fewer in that boot protocols 2.2 to 2.11 are known to them.
func TestDifferential(t *testing.T) {
	base := pe()
	base[loadFlags] |= 1
	r := rand.New(rand.NewPCG(1, 2))
	const optional = 0x298
	bytesOf := []int{0x3c, 0x3d, 0x206, 0x207, 0x211, 0x22c, 0x22f, 0x236, 0x286, 0x287, 0x294, 0x295, optional, optional + 1, optional + 60, optional + 61, optional + 108, optional + 148, optional + 149}
	for i := range 80 {
		bytesOf = append(bytesOf, optional+0xa0+i)
	}
	agreed := 0
	for range 50000 {
		k := slices.Clone(base)
		for range 1 + r.IntN(3) {
			k[bytesOf[r.IntN(len(bytesOf))]] = []byte{0, 1, 2, 4, 5, 6, 8, 0x10, 0x40, 0x80, 0xff, byte(r.Uint32())}[r.IntN(12)]
		}
		if r.IntN(4) == 0 {
			k = k[:r.IntN(len(k))]
		}
		memory, initrd := r.Uint64N(6<<30)&^4095, make([]byte, r.IntN(3)*5000)
		for _, m := range []Machine{Q35, PC} {
			if compareKernels(t, k, initrd, m, memory) && compareImages(t, k) {
				agreed++
			}
		}
	}
	if agreed < 40000 {
		t.Errorf("only %d cases gave results to compare", agreed)
	}
	if k, err := os.ReadFile("../../../build/guest/vmlinuz"); err == nil {
		if !compareImages(t, k) || !compareKernels(t, k, make([]byte, 19<<20), Q35, 512<<20) {
			t.Error("the guest's kernel is refused")
		}
	}
}

func compareKernels(t *testing.T, k, initrd []byte, m Machine, memory uint64) bool {
	t.Helper()
	old, oldErr := patchKernel(k, initrd, m, memory)
	head, rest, err := qemuload.Load{Machine: qemuload.Machine(m), Memory: memory, Initrd: len(initrd)}.Kernel(k)
	switch {
	case oldErr == nil && err == nil:
		if !bytes.Equal(old, slices.Concat(head, rest)) {
			t.Fatal("patched kernels differ")
		}
		return true
	case oldErr == nil && !strings.Contains(err.Error(), "loaded high"):
		t.Fatalf("only the new one refuses: %v", err)
	case err == nil && !strings.Contains(oldErr.Error(), "boot protocol") && !strings.Contains(oldErr.Error(), "at least 16 MiB"):
		t.Fatalf("only the old one refuses: %v", oldErr)
	}
	return false
}

func compareImages(t *testing.T, k []byte) bool {
	t.Helper()
	old, oldErr := imageDigest(k, sha256.New())
	h := sha256.New()
	err := peimage.Digest(h, k, nil)
	switch {
	case oldErr == nil && err == nil:
		if !bytes.Equal(old, h.Sum(nil)) {
			t.Fatalf("digests differ for %x", k)
		}
		return true
	case oldErr == nil && !strings.Contains(err.Error(), "overlap") && !strings.Contains(err.Error(), "optional header of"):
		t.Fatalf("only the new one refuses: %v", err)
	case err == nil:
		t.Fatalf("only the old one refuses: %v", oldErr)
	}
	return false
}
