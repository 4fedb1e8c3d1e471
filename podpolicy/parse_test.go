package podpolicy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/google/go-cmp/cmp"
)

func TestParseAndCanonical(t *testing.T) {
	t.Parallel()
	p := webPolicy(t)
	canonical, err := p.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/web.canonical.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(golden), string(canonical)); diff != "" {
		t.Errorf("canonical form differs from testdata (-want +got):\n%s", diff)
	}
	again, err := podpolicy.Parse(canonical)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := again.Canonical()
	if err != nil || !bytes.Equal(canonical, twice) {
		t.Errorf("canonical form is not its own canonical form: %v", err)
	}
	d1, err1 := p.Digest()
	d2, err2 := again.Digest()
	if err1 != nil || err2 != nil || d1 != d2 {
		t.Errorf("digests differ: %x %x", d1, d2)
	}
}

// Policies that mean the same have the same bytes.
func TestCanonicalForgetsSpelling(t *testing.T) {
	t.Parallel()
	base := string(document(t))
	want, _ := webPolicy(t).Canonical()
	for _, edit := range [][2]string{
		{`"512Mi"`, `"536870912"`},
		{`"512Mi"`, `"524288Ki"`},
		{`"size": "1Gi"`, `"size": "1024Mi"`},
		{`"medium": "disk", `, ``},
		{`, "mode": "0644"`, ``},
		{`"seccomp": "default", `, ``},
		{`"noNewPrivileges": true, `, ``},
		{`"sharePID": false,`, ``},
		{`"role": "app",`, ``},
		{`["token", "ca.crt", "namespace"]`, `["namespace", "token", "ca.crt"]`},
		{`[["/healthz"], {`, `[{"args": ["/healthz"]}, {`},
		{`"attach": false, `, ``},
		{`[{"path": "/data", "volume": "scratch"}, {"path": "/etc/app", "volume": "config", "readOnly": true}]`, `[{"path": "/etc/app", "volume": "config", "readOnly": true}, {"path": "/data", "volume": "scratch"}]`},
	} {
		edited := strings.Replace(base, edit[0], edit[1], 1)
		if edited == base {
			t.Fatalf("%s does not occur", edit[0])
		}
		p, err := podpolicy.Parse([]byte(edited))
		if err != nil {
			t.Errorf("%s → %s: %v", edit[0], edit[1], err)
			continue
		}
		if got, err := p.Canonical(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s → %s: other bytes (%v)\n%s", edit[0], edit[1], err, cmp.Diff(string(want), string(got)))
		}
	}
}

func TestCanonicalDoesNotEscapeForHTML(t *testing.T) {
	t.Parallel()
	p := simplePolicy()
	p.Containers[0].Args = []string{"/bin/sh", "-c", "a < b && c > d"}
	p.Containers[0].Allow.Exec = []podpolicy.ExecRule{{Args: []string{"a<b&c"}}}
	data, err := p.Canonical()
	if err != nil || !strings.Contains(string(data), `"a < b && c > d"`) || !strings.Contains(string(data), `"a<b&c"`) {
		t.Errorf("%v\n%s", err, data)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	base := string(document(t))
	tests := map[string]struct{ old, new, path, problem string }{
		"unknown top field":     {`"kind": "PodPolicy",`, `"kind": "PodPolicy", "extra": 1,`, "extra", "unknown field"},
		"unknown deep field":    {`"readOnlyRoot": true`, `"readonlyRoot": true`, "containers[2].readonlyRoot", "letter case"},
		"unknown slot member":   {`{"host": "ip"}`, `{"hots": "ip"}`, "containers[2].env.POD_IP.hots", "unknown field"},
		"unknown name member":   {`{"match": "web-*"}`, `{"regex": "web"}`, "pod.name.regex", "unknown field"},
		"unknown exec member":   {`{"args": ["/bin/sh"]`, `{"tty": true, "args": ["/bin/sh"]`, "containers[2].allow.exec[1].tty", "unknown field"},
		"duplicate":             {`"role": "app",`, `"role": "app", "role": "app",`, "containers[2].role", "twice"},
		"bad memory":            {`"512Mi"`, `"512MB"`, "containers[2].limits.memory", "number of bytes"},
		"number for memory":     {`"512Mi"`, `512`, "containers[2].limits.memory", "an object"},
		"wrong type":            {`"pids": 256`, `"pids": "256"`, "containers[2].limits.pids", "expected a number"},
		"null switch":           {`"noNewPrivileges": true`, `"noNewPrivileges": null`, "containers[2].noNewPrivileges", "null"},
		"apiVersion":            {`"coffer/v1"`, `"coffer/v2"`, "apiVersion", `expected "coffer/v1"`},
		"kind":                  {`"PodPolicy"`, `"Policy"`, "kind", `expected "PodPolicy"`},
		"no pod name":           {`"name": {"match": "web-*"}, `, ``, "pod.name", "expected a name"},
		"double star":           {`"web-*"`, `"web-**"`, "pod.name.match", "**"},
		"wrong slot for place":  {`{"host": "hostname"}`, `{"host": "nodeName"}`, "pod.hostname.host", "slot type hostname"},
		"unknown slot":          {`{"host": "ip"}`, `{"host": "anything"}`, "containers[2].env.POD_IP.host", "slot type"},
		"dns slot in env":       {`{"host": "ip"}`, `{"host": "dns"}`, "containers[2].env.POD_IP.host", "slot type"},
		"two values":            {`{"host": "ip"}`, `{"host": "ip", "value": ""}`, "containers[2].env.POD_IP", "exactly one"},
		"no value":              {`{"host": "ip"}`, `{}`, "containers[2].env.POD_IP", "exactly one"},
		"bad namespace":         {`"namespace": "shop"`, `"namespace": "Shop"`, "pod.namespace", "DNS label"},
		"global sysctl":         {`"net.core.somaxconn"`, `"kernel.core_pattern"`, `pod.sysctls["kernel.core_pattern"]`, "namespaces"},
		"sysctl path":           {`"net.core.somaxconn"`, `"net.core/../../kernel"`, `pod.sysctls["net.core/../../kernel"]`, "namespaces"},
		"sysctl dots":           {`"net.core.somaxconn"`, `"net...kernel.core_pattern"`, `pod.sysctls["net...kernel.core_pattern"]`, "namespaces"},
		"duplicate container":   {`"name": "mesh"`, `"name": "migrate"`, "containers[1].name", "earlier container"},
		"bad role":              {`"role": "app"`, `"role": "main"`, "containers[2].role", "app or init or sidecar"},
		"short digest":          {webDigest, "sha256:aa", "containers[2].image.digest", "64 lower-case"},
		"upper digest":          {webDigest, strings.ToUpper(webDigest), "containers[2].image.digest", "64 lower-case"},
		"tag in from":           {`"registry.example/shop/web"`, `"registry.example/shop/web:v1"`, "containers[2].image.from[0]", "without tag"},
		"no registry":           {`"registry.example/shop/web"`, `"shop/web"`, "containers[2].image.from[0]", "with its registry"},
		"docker short name":     {`"registry.example/shop/web"`, `"docker.io/web"`, "containers[2].image.from[0]", "repository"},
		"empty from":            {`["registry.example/shop/migrate"]`, `[]`, "containers[0].image.from", "at least one"},
		"empty args":            {`["/web", "--port=8080"]`, `[]`, "containers[2].args", "expected a program"},
		"NUL in args":           {`"--port=8080"`, `"a\u0000b"`, "containers[2].args[1]", "NUL"},
		"relative cwd":          {`"/srv"`, `"srv"`, "containers[2].cwd", "absolute"},
		"unclean cwd":           {`"/srv"`, `"/srv/../etc"`, "containers[2].cwd", "clean"},
		"uid -1":                {`"uid": 1000`, `"uid": 4294967295`, "containers[2].user.uid", "at most"},
		"group twice":           {`[2000]`, `[2000, 2000]`, "containers[2].user.groups[1]", "different"},
		"env name":              {`"MODE"`, `"MO=DE"`, `containers[2].env["MO=DE"]`, "no ="},
		"sealed as literal":     {`{"value": "prod"}`, `{"value": "sealed.a.b.c"}`, "containers[2].env.MODE.value", "sealed secret"},
		"bad sealed":            {`"sealed.aGVhZA.cGF5bG9hZA.c2ln"`, `"sealed.a.b"`, "containers[2].env.DB_PASSWORD.sealed", "sealed.HEADER"},
		"bad resource":          {`"kbs:///shop/db/key"`, `"kbs:///shop/../key"`, "containers[2].env.KEY.resource", "kbs:///"},
		"resource with host":    {`"kbs:///shop/db/key"`, `"kbs://evil.example/shop/db/key"`, "containers[2].env.KEY.resource", "kbs:///"},
		"capability":            {`"CAP_NET_BIND_SERVICE"`, `"NET_BIND_SERVICE"`, "containers[2].capabilities[0]", "CAP_CHOWN"},
		"seccomp":               {`"seccomp": "default"`, `"seccomp": "off"`, "containers[2].seccomp", "unconfined"},
		"mount over root":       {`"path": "/data"`, `"path": "/"`, "containers[2].mounts[0].path", "not /"},
		"mount over proc":       {`"path": "/data"`, `"path": "/proc/self"`, "containers[2].mounts[0].path", "/proc"},
		"mount with dots":       {`"path": "/data"`, `"path": "/data/../proc"`, "containers[2].mounts[0].path", "clean"},
		"mount twice":           {`"path": "/data"`, `"path": "/etc/app"`, "containers[2].mounts[1].path", "twice"},
		"unknown volume":        {`"volume": "scratch"`, `"volume": "nope"`, "containers[2].mounts[0].volume", "no volume"},
		"writable files":        {`, "readOnly": true}]`, `}]`, "containers[2].mounts[1].readOnly", "readOnly"},
		"subPath escape":        {`"volume": "scratch"`, `"volume": "scratch", "subPath": "../x"`, "containers[2].mounts[0].subPath", "relative"},
		"subPath of no file":    {`"path": "/etc/app", "volume": "config"`, `"path": "/etc/app", "volume": "config", "subPath": "other.conf"`, "containers[2].mounts[1].subPath", "a file that volume"},
		"subPath is a part":     {`"path": "/etc/app", "volume": "config"`, `"path": "/etc/app", "volume": "config", "subPath": "app"`, "containers[2].mounts[1].subPath", "a file that volume"},
		"subPath is the link":   {`"path": "/etc/app", "volume": "config"`, `"path": "/etc/app", "volume": "config", "subPath": "..data"`, "containers[2].mounts[1].subPath", "a file that volume"},
		"empty exec":            {`["/healthz"]`, `[]`, "containers[2].allow.exec[0]", "program"},
		"exec twice":            {`["/healthz"]`, `["/bin/sh"]`, "containers[2].allow.exec[1]", "before"},
		"port 0":                {`[8080]`, `[0]`, "containers[2].allow.portForward[0]", "1 to 65535"},
		"signal":                {`"SIGHUP"`, `"HUP"`, "containers[2].allow.signals[0]", "SIGHUP"},
		"restarts":              {`"restarts": "onFailure"`, `"restarts": "maybe"`, "containers[0].allow.restarts", "never or"},
		"endless init":          {`"restarts": "onFailure"`, `"restarts": "always"`, "containers[0].allow.restarts", "sidecar"},
		"memory slot for cpu":   {`{"host": "cpu"}`, `{"host": "memory"}`, "containers[2].limits.cpus.host", "slot type cpu"},
		"volume kind":           {`"kind": "ephemeral"`, `"kind": "hostPath"`, "volumes.scratch.kind", "ephemeral, files or block"},
		"foreign field":         {`"medium": "disk"`, `"filesystem": "ext4"`, "volumes.scratch.filesystem", "block volumes"},
		"medium":                {`"medium": "disk"`, `"medium": "tape"`, "volumes.scratch.medium", "disk or memory"},
		"volume name":           {`"scratch": {`, `"Scratch": {`, "volumes.Scratch", "DNS label"},
		"file name is path":     {`"app.conf"`, `"../app.conf"`, `volumes.config.pinned["../app.conf"]`, "file name"},
		"pinned digest":         {`"sha256:2cf2`, `"sha256:zzf2`, `volumes.config.pinned["app.conf"]`, "hex digits"},
		"set-uid mode":          {`"0644"`, `"4755"`, "volumes.token.host.mode", "0775"},
		"no budget":             {`"maxBytes": 65536`, `"maxBytes": 0`, "volumes.token.host.maxBytes", "1 to"},
		"block without key":     {`"key": "kbs:///shop/db/disk-key", `, ``, "volumes.db.key", "not encrypted"},
		"filesystem":            {`"filesystem": "ext4"`, `"filesystem": "ntfs"`, "volumes.db.filesystem", "ext4"},
		"dns both":              {`{"host": "dns"}`, `{"host": "dns", "servers": ["10.0.0.1"]}`, "network.dns", "not both"},
		"dns server":            {`{"host": "dns"}`, `{"servers": ["dns.example"]}`, "network.dns.servers[0]", "IP address"},
		"hosts localhost":       {`{"host": "hosts"}`, `{"entries": [{"address": "10.0.0.1", "names": ["localhost"]}]}`, "network.hosts.entries[0].names[0]", "localhost"},
		"service name":          {`["db"]`, `["DB"]`, "containers[2].serviceEnv[0]", "DNS label"},
		"expandArgs alone":      {`"role": "init",`, `"role": "init", "expandArgs": true,`, "containers[0].expandArgs", "set args"},
		"expand of expand":      {`{"value": "prod"}`, `{"expand": "$(ODE)"}, "ODE": {"expand": "x"}`, "containers[2].env.MODE.expand", "$(ODE) is a variable with references"},
		"expand of itself":      {`{"value": "prod"}`, `{"expand": "$(MODE)"}`, "containers[2].env.MODE.expand", "$(MODE)"},
		"too many references":   {`{"value": "prod"}`, `{"expand": "` + strings.Repeat("$(X)", 65) + `"}`, "containers[2].env.MODE.expand", "at most 64"},
		"NUL in expand":         {`{"value": "prod"}`, `{"expand": "a\u0000"}`, "containers[2].env.MODE.expand", "NUL"},
		"expand and value":      {`{"value": "prod"}`, `{"expand": "a", "value": "b"}`, "containers[2].env.MODE", "exactly one"},
		"trustee is no label":   {`"kbs:///shop/db/key"`, `"kbs://Evil/shop/db/key"`, "containers[2].env.KEY.resource", "initdata"},
		"trustee with port":     {`"kbs:///shop/db/key"`, `"kbs://evil:8080/shop/db/key"`, "containers[2].env.KEY.resource", "initdata"},
		"two segments":          {`"kbs:///shop/db/key"`, `"kbs://shop/db/key"`, "containers[2].env.KEY.resource", "TRUSTEE"},
		"four segments":         {`"kbs:///shop/db/key"`, `"kbs:///shop/db/key/x"`, "containers[2].env.KEY.resource", "kbs:///"},
		"restarted ephemeral":   {`"role": "sidecar"`, `"role": "ephemeral"`, "containers[1].allow.restarts", "once"},
		"device outside /dev":   {`"mounts": [{`, `"devices": [{"path": "/data/xvda", "volume": "db"}], "mounts": [{`, "containers[2].devices[0].path", "/dev/xvda"},
		"device that is there":  {`"mounts": [{`, `"devices": [{"path": "/dev/null", "volume": "db"}], "mounts": [{`, "containers[2].devices[0].path", "no runtime makes"},
		"device with dots":      {`"mounts": [{`, `"devices": [{"path": "/dev/../etc", "volume": "db"}], "mounts": [{`, "containers[2].devices[0].path", "clean"},
		"device with files":     {`"mounts": [{`, `"devices": [{"path": "/dev/xvda", "volume": "config"}], "mounts": [{`, "containers[2].devices[0].volume", "block volume"},
		"device with ext4":      {`"mounts": [{`, `"devices": [{"path": "/dev/xvda", "volume": "db"}], "mounts": [{`, "containers[2].devices[0].volume", "without filesystem"},
		"device of nothing":     {`"mounts": [{`, `"devices": [{"path": "/dev/xvda", "volume": "x"}], "mounts": [{`, "containers[2].devices[0].volume", "no volume"},
		"device twice":          {`"mounts": [{`, `"devices": [{"path": "/dev/a", "volume": "db"}, {"path": "/dev/a", "volume": "db"}], "mounts": [{`, "containers[2].devices[1].path", "twice"},
		"relative copy":         {`"logs": true,`, `"logs": true, "copy": {"from": ["data"]},`, "containers[2].allow.copy.from[0]", "absolute"},
		"copy with dots":        {`"logs": true,`, `"logs": true, "copy": {"to": ["/data/.."]},`, "containers[2].allow.copy.to[0]", "clean"},
		"copy twice":            {`"logs": true,`, `"logs": true, "copy": {"to": ["/a", "/a"]},`, "containers[2].allow.copy.to[1]", "twice"},
		"copy both":             {`"logs": true,`, `"logs": true, "copy": {"both": ["/a"]},`, "containers[2].allow.copy.both", "unknown field"},
		"file and directory":    {`"pinned": {`, `"sealed": {"app.conf/x": "sealed.a.b.c"}, "pinned": {`, "volumes.config", "is a file and the directory"},
		"deep file":             {`"app.conf"`, `"1/2/3/4/5/6/7/8/9"`, `volumes.config.pinned["1/2/3/4/5/6/7/8/9"]`, "at most 8"},
		"unclean file":          {`"app.conf"`, `"a//b"`, `volumes.config.pinned["a//b"]`, "file name"},
		"file in a dot name":    {`"app.conf"`, `"a/..data"`, `volumes.config.pinned["a/..data"]`, "file name"},
		"absolute file":         {`"app.conf"`, `"/app.conf"`, `volumes.config.pinned["/app.conf"]`, "file name"},
		"file twice":            {`"pinned": {`, `"resources": {"app.conf": "kbs:///a/b/c"}, "pinned": {`, `volumes.config.resources["app.conf"]`, "named before"},
		"unsealed as sealed":    {`"pinned": {`, `"sealed": {"x": "secret"}, "pinned": {`, "volumes.config.sealed.x", "sealed.HEADER"},
		"file of no resource":   {`"pinned": {`, `"resources": {"x": "https://a/b/c"}, "pinned": {`, "volumes.config.resources.x", "kbs:///"},
		"mode of nothing":       {`"pinned": {`, `"modes": {"x": "0600"}, "pinned": {`, "volumes.config.modes.x", "no file"},
		"writable for others":   {`"pinned": {`, `"mode": "0666", "pinned": {`, "volumes.config.mode", "0775"},
		"empty exception":       {`"pinned": {`, `"modes": {"app.conf": ""}, "pinned": {`, `volumes.config.modes["app.conf"]`, "octal"},
		"modes of a disk":       {`"medium": "disk"`, `"modes": {}`, "volumes.scratch.modes", "files volumes"},
		"group -1":              {`"medium": "disk"`, `"group": 4294967295`, "volumes.scratch.group", "at most"},
		"trailing data":         {`"network": {"dns": {"host": "dns"}, "hosts": {"host": "hosts"}}`, `"network": {}} {`, "", "after the end"},
		"negative limit":        {`"pids": 256`, `"pids": -1`, "containers[2].limits.pids", "does not fit"},
		"quantity out of range": {`"512Mi"`, `"99999999999Ti"`, "containers[2].limits.memory", "number of bytes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			edited := strings.Replace(base, tt.old, tt.new, 1)
			if edited == base {
				t.Fatalf("%s does not occur", tt.old)
			}
			p, err := podpolicy.Parse([]byte(edited))
			if err == nil {
				t.Fatalf("accepted: %+v", p)
			}
			if !strings.Contains(err.Error(), tt.path) || !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("error does not name %s and %q: %v", tt.path, tt.problem, err)
			}
			if invalid, ok := errors.AsType[*podpolicy.InvalidError](err); ok && !slices.ContainsFunc(invalid.Problems, func(p podpolicy.Problem) bool { return p.Path == tt.path }) {
				t.Errorf("no problem is at %s: %v", tt.path, err)
			}
		})
	}
}

func TestValidateReportsAllProblems(t *testing.T) {
	t.Parallel()
	p := simplePolicy()
	p.Kind, p.Containers[0].Role, p.Containers[0].Image.Digest, p.Containers[0].Cwd = "x", "x", "x", "x"
	invalid, ok := errors.AsType[*podpolicy.InvalidError](p.Validate())
	if !ok || len(invalid.Problems) != 4 {
		t.Errorf("got %v, want 4 problems", invalid)
	}
	if _, err := p.Canonical(); err == nil {
		t.Error("an invalid policy has a canonical form")
	}
	if _, err := p.Digest(); err == nil {
		t.Error("an invalid policy has a digest")
	}
}

// The reference's example is a policy.
func TestReferenceExample(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/pod-policy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```json\n")
	example, _, _ := strings.Cut(rest, "```")
	if _, err := podpolicy.Parse([]byte(example)); err != nil {
		t.Error(err)
	}
}

func TestParseTooLarge(t *testing.T) {
	t.Parallel()
	if _, err := podpolicy.Parse(append(document(t), bytes.Repeat([]byte(" "), podpolicy.MaxBytes)...)); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("got %v", err)
	}
}

func TestQuantities(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]uint64{"1": 1, "1k": 1000, "1Ki": 1024, "2M": 2e6, "512Mi": 512 << 20, "3G": 3e9, "1Gi": 1 << 30, "1T": 1e12, "2Ti": 2 << 40} {
		if got, err := podpolicy.ParseBytes(in); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v", in, got, err)
		}
		if got, err := podpolicy.ParseBytes(podpolicy.FormatBytes(want)); err != nil || got != want {
			t.Errorf("%d is not read back: %d, %v", want, got, err)
		}
	}
	for _, in := range []string{"", "0", "-1", "+1", "1.5Gi", "1KB", "1m", "Mi", "1 Mi", "1_000", "18446744073709551615", "9223372036854775808", "1MiMi", "１"} {
		if got, err := podpolicy.ParseBytes(in); err == nil {
			t.Errorf("ParseBytes(%q) = %d", in, got)
		}
	}
	for in, want := range map[string]uint32{"1": 1000, "0.5": 500, "1.25": 1250, "1500m": 1500, "0.001": 1, "1m": 1, "1024": 1024000} {
		if got, err := podpolicy.ParseCPUs(in); err != nil || got != want {
			t.Errorf("ParseCPUs(%q) = %d, %v", in, got, err)
		}
		if got, err := podpolicy.ParseCPUs(podpolicy.FormatCPUs(want)); err != nil || got != want {
			t.Errorf("%d is not read back: %d, %v", want, got, err)
		}
	}
	for _, in := range []string{"", "0", "0m", "1.", ".5", "1.0005", "-1", "1e3", "1025", "99999999999999999999", "1,5"} {
		if got, err := podpolicy.ParseCPUs(in); err == nil {
			t.Errorf("ParseCPUs(%q) = %d", in, got)
		}
	}
}

// Everything that a policy can say is read, written and read again.
func TestEverythingRoundTrips(t *testing.T) {
	t.Parallel()
	p := everythingPolicy(t)
	canonical := must[[]byte](t)(p.Canonical())
	again := must[*podpolicy.Policy](t)(podpolicy.Parse(canonical))
	if twice := must[[]byte](t)(again.Canonical()); !bytes.Equal(canonical, twice) {
		t.Error(cmp.Diff(string(canonical), string(twice)))
	}
	if d := podpolicy.Diff(p, again); len(d) != 0 {
		t.Errorf("reading has changed %v", d)
	}
	for _, part := range []string{
		`"expand": "db://user:$(DB_PASSWORD)@$(POD_IP)/$$"`, `"expandArgs": true`, `"path": "/dev/xvda"`, `"role": "ephemeral"`, `"tls/ca.crt": "0444"`,
		`"group": 2000`, `"kbs://far-away/shop/tls/key"`, `"subPath": "a/b"`, `"sealed": {`, `"mode": "0440"`,
	} {
		if strings.Contains(part, "ca.crt") == bytes.Contains(canonical, []byte(part)) { // 444 is what host.mode says already
			t.Errorf("%s: %t\n%s", part, !strings.Contains(part, "ca.crt"), canonical)
		}
	}
	// A raw disk cannot be mounted.
	web(p).Mounts[0].Volume = "raw"
	if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "has no filesystem") {
		t.Errorf("got %v", err)
	}
}

// What a policy does not mention is off.
func TestZeroValuesAreSafe(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(simplePolicy())
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	c := start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one"}, podpolicy.ImageConfig{Digest: webDigest})
	if !c.NoNewPrivileges || len(c.Capabilities) != 0 || c.Seccomp != podpolicy.SeccompDefault || c.Stdin || c.Terminal {
		t.Errorf("unsafe defaults: %+v", c)
	}
	if g.Stream("c", "", podpolicy.Stdout) || g.Stream("c", "", podpolicy.Stdin) {
		t.Error("streams are open by default")
	}
	data, err := json.Marshal(simplePolicy())
	if err != nil || !strings.Contains(string(data), `"noNewPrivileges":true`) {
		t.Errorf("%s %v", data, err)
	}
}
