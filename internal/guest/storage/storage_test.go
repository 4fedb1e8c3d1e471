package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/luks"
	"github.com/coffer-project/coffer/secret"
)

const areaSectors = 96 << 11 // 96 MiB

// kernelSuperblock is one that Linux 6.12 wrote for such an area.
func kernelSuperblock(t testing.TB, change func(*superblock)) []byte {
	t.Helper()
	s := superblock{
		Magic: integrityMagic, Version: 4, Log2Interleave: 15, TagSize: 32, JournalSections: 5, DataSectors: 194560, Flags: flagFixedPadding, Log2Block: 3,
	}
	change(&s)
	raw := make([]byte, superblockSize)
	if _, err := binary.Encode(raw, binary.LittleEndian, &s); err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestSuperblock(t *testing.T) {
	t.Parallel()
	good := kernelSuperblock(t, func(*superblock) {})
	if s, err := parseSuperblock(good, areaSectors); err != nil || s.DataSectors != 194560 {
		t.Errorf("got %+v, %v", s, err)
	}
	for _, tc := range []struct {
		name   string
		change func(*superblock)
	}{
		{"magic", func(s *superblock) { s.Magic[7] = 1 }},
		{"magic", func(s *superblock) { s.Magic = [8]byte{} }},
		{"version", func(s *superblock) { s.Version = 0 }},
		{"version", func(s *superblock) { s.Version = 6 }},
		{"interleave", func(s *superblock) { s.Log2Interleave = 2 }},
		{"interleave", func(s *superblock) { s.Log2Interleave = 255 }},
		{"tag size", func(s *superblock) { s.TagSize = 0 }},
		{"tag size", func(s *superblock) { s.TagSize = 4 }},
		{"journal sections", func(s *superblock) { s.JournalSections = 0 }},
		{"journal sections", func(s *superblock) { s.JournalSections = 1 << 31 }},
		{"data sectors", func(s *superblock) { s.DataSectors = 0 }},
		{"data sectors", func(s *superblock) { s.DataSectors = 12 }},
		{"data sectors", func(s *superblock) { s.DataSectors = areaSectors }},
		{"data sectors", func(s *superblock) { s.DataSectors = 1 << 63 }},
		{"flags", func(s *superblock) { s.Flags |= 1 }},
		{"flags", func(s *superblock) { s.Flags |= 2 }},
		{"flags", func(s *superblock) { s.Flags |= 4 }},
		{"flags", func(s *superblock) { s.Flags |= 16 }},
		{"flags", func(s *superblock) { s.Flags |= 1 << 31 }},
		{"sectors per block", func(s *superblock) { s.Log2Block = 0 }},
		{"sectors per block", func(s *superblock) { s.Log2Block = 63 }},
		{"recalculation", func(s *superblock) { s.RecalcSector = 8 }},
		{"reserved bytes", func(s *superblock) { s.Pad[1] = 1 }},
		{"reserved bytes", func(s *superblock) { s.Salt[0] = 1 }},
	} {
		if _, err := parseSuperblock(kernelSuperblock(t, tc.change), areaSectors); err == nil || !strings.Contains(err.Error(), tc.name+": expected") {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	tail := bytes.Clone(good)
	tail[superblockSize-1] = 1
	for _, raw := range [][]byte{nil, good[:511], tail} {
		if _, err := parseSuperblock(raw, areaSectors); err == nil {
			t.Errorf("%d bytes were accepted", len(raw))
		}
	}
}

func FuzzSuperblock(f *testing.F) {
	f.Add(kernelSuperblock(f, func(*superblock) {})[:512])
	f.Fuzz(func(t *testing.T, b []byte) {
		raw := make([]byte, superblockSize)
		copy(raw, b)
		s, err := parseSuperblock(raw, areaSectors)
		if err == nil && (s.DataSectors >= areaSectors || s.JournalSections > maxJournalSections || s.TagSize != luks.TagSize) {
			t.Errorf("accepted %+v", s)
		}
	})
}

func TestLookup(t *testing.T) {
	t.Parallel()
	sys := t.TempDir()
	for name, serial := range map[string]string{"vda": "scratch", "vdb": "data\n", "vdc": "twice", "vdd": "twice", "vde": "", "vdf": "a/b", "sda": "other"} {
		dir := filepath.Join(sys, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "serial"), []byte(serial), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for serial, want := range map[string]string{"scratch": "vda", "data": "vdb", "other": "", "none": "", "": ""} {
		if serial == "" {
			continue
		}
		if name, seen, err := lookup(sys, serial); err != nil || name != want || len(seen) != 4 {
			t.Errorf("%s: %s, %q, %v", serial, name, seen, err)
		}
	}
	if _, _, err := lookup(sys, "twice"); err == nil || !strings.Contains(err.Error(), "two disks") {
		t.Errorf("two disks of one serial number: %v", err)
	}
	for _, serial := range []string{"", "a/b", "..", strings.Repeat("a", 21), "a b", "a\n"} {
		if _, err := findDisk(t.Context(), sys, sys, serial, time.Second); err == nil || !strings.Contains(err.Error(), "expected a serial number") {
			t.Errorf("%q: %v", serial, err)
		}
	}
	// A disk that is none, and none at all.
	if err := os.WriteFile(filepath.Join(sys, "node"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openDisk(filepath.Join(sys, "node"), "x"); err == nil || !strings.Contains(err.Error(), "disk x: not a block device") {
		t.Errorf("a file as a disk: %v", err)
	}
	if _, err := openDisk(filepath.Join(sys, "absent"), "x"); err == nil {
		t.Error("no disk")
	}
}

// The key goes into the table and nowhere else.
func TestCryptTarget(t *testing.T) {
	t.Parallel()
	key := secret.New(bytes.Repeat([]byte{0xab}, luks.KeySize))
	got := cryptTarget("253:1", 1000, key)
	want := "capi:authenc(hmac(sha256),xts(aes))-plain64 " + strings.Repeat("ab", luks.KeySize) + " 0 253:1 0 2 integrity:32:aead sector_size:4096"
	if string(got.Params) != want || got.Length != 1000 || got.Type != "crypt" {
		t.Errorf("got %s", got.Params)
	}
	// No part of it was left in memory that nobody clears.
	if cap(got.Params) != len(got.Params) {
		t.Errorf("the table was reallocated: %d of %d bytes", len(got.Params), cap(got.Params))
	}
}

func TestBackupGroups(t *testing.T) {
	t.Parallel()
	for last, want := range map[int64][]int64{0: nil, 1: {1}, 2: {1}, 10: {1, 3, 9, 5, 7}, 50: {1, 3, 9, 27, 5, 25, 7, 49}} {
		if got := backupGroups(last); !slices.Equal(got, want) {
			t.Errorf("%d: %v", last, got)
		}
	}
	if n := len(backupGroups(1 << 40)); n > 100 {
		t.Errorf("%d groups", n)
	}
}

func TestVolumeRefusesBeforeItLooks(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	m := New(Options{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Drivers: func(context.Context) error { return errors.New("no drivers here") }})
	key := secret.New(bytes.Repeat([]byte{0x5a}, 32))
	for _, tc := range []struct {
		v    Volume
		want string
	}{
		{Volume{Name: "Data", Key: key}, "name: expected"},
		{Volume{Name: "..", Key: key}, "name: expected"},
		{Volume{Name: "data", Key: secret.New(make([]byte, 31))}, "key: expected 32 to 512 bytes, got 31"},
		{Volume{Name: "data", Key: secret.New(make([]byte, 513))}, "key: expected 32 to 512 bytes, got 513"},
		{Volume{Name: "data", Key: key, Filesystem: "btrfs"}, "filesystem: expected ext4"},
		{Volume{Name: "data", Key: key, Serial: "x"}, "volume data: drivers of disks: no drivers here"},
	} {
		_, err := m.OpenVolume(t.Context(), tc.v)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v", tc.v, err)
		}
		if text := fmt.Sprint(err, log.String()); strings.Contains(text, hex.EncodeToString(key.Expose())) || strings.Contains(text, string(key.Expose())) {
			t.Error("the key is told")
		}
	}
	if err := m.Scratch(t.Context(), "x", t.TempDir()); err == nil || !strings.Contains(err.Error(), "scratch disk: drivers of disks: no drivers here") {
		t.Errorf("scratch: %v", err)
	}
	if _, err := m.Directory("x", 0); err == nil || m.HasScratch() {
		t.Error("a scratch disk that never was")
	}
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
