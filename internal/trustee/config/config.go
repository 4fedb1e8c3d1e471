// Package config is the trustee's configuration: a TOML file in which every
// key is known, every value checked, and every problem reported at once.
// docs/trustee.md is its reference, deploy/trustee/trustee.toml an example
// with every key.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Config is a trustee's configuration. Get one from [Default], [Load] or
// [Parse]; the zero value is not valid.
type Config struct {
	// Listen is the TCP address of the HTTPS server; port 0 picks a free one.
	Listen string `toml:"listen"`
	// StateDir holds the database and the keys, private to the user.
	StateDir    string      `toml:"state_dir"`
	Log         Log         `toml:"log"`
	TLS         TLS         `toml:"tls"`
	Admin       Admin       `toml:"admin"`
	Session     Session     `toml:"session"`
	Token       Token       `toml:"token"`
	Attestation Attestation `toml:"attestation"`
	Policy      Policy      `toml:"policy"`
	References  References  `toml:"reference_values"`
	Limits      Limits      `toml:"limits"`
	Storage     Storage     `toml:"storage"`
	TEE         TEE         `toml:"tee"`
}

// Log configures logging to stderr.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `toml:"level"`
	// Format is text or json.
	Format string `toml:"format"`
}

// TLS configures the server's certificate.
type TLS struct {
	// Certificate (with its chain) and PrivateKey are PEM files. Both empty:
	// the trustee makes an authority of its own in the state directory.
	Certificate string `toml:"certificate"`
	PrivateKey  string `toml:"private_key"`
	// Root is the PEM file clients should pin with a certificate from files;
	// the trustee only hands it out.
	Root string `toml:"root"`
	// Names are the DNS names and addresses in the own authority's certificate.
	Names []string `toml:"names"`
	// InsecureHTTP serves plain HTTP, on a loopback address only.
	InsecureHTTP bool `toml:"insecure_http"`
}

// Admin configures who may administer.
type Admin struct {
	// PublicKeys are PEM files of Ed25519 keys. None: the trustee makes a key
	// pair in the state directory.
	PublicKeys []string `toml:"public_keys"`
	Issuer     string   `toml:"issuer"`
	Audience   string   `toml:"audience"`
	// MaxTokenLifetime bounds exp − iat of an administrator's token.
	MaxTokenLifetime Duration `toml:"max_token_lifetime"`
}

// Session configures handshakes.
type Session struct {
	// Timeout counts from the challenge.
	Timeout Duration `toml:"timeout"`
	// Max is how many sessions may be unexpired.
	Max int `toml:"max"`
}

// Token configures attestation tokens.
type Token struct {
	Lifetime Duration `toml:"lifetime"`
	Issuer   string   `toml:"issuer"`
	Audience string   `toml:"audience"`
	// KeyFiles are PEM files of P-256 or P-384 keys: the first signs, all
	// verify. None: a P-256 key in the state directory.
	KeyFiles []string `toml:"key_files"`
}

// Attestation configures appraisal.
type Attestation struct {
	// VerboseToken keeps additional evidence and initdata claims in the token.
	VerboseToken bool `toml:"verbose_token"`
	// Selectors map what a client may ask for (attestation-policy-selector)
	// to policy ids.
	Selectors map[string]string `toml:"selectors"`
	// MaxConcurrent is how many verifications run at once.
	MaxConcurrent int `toml:"max_concurrent"`
}

// Policy configures decisions.
type Policy struct {
	// AllowSimulated lets the built-in resource policy release resources to a
	// software TEE under a configured development root. Never in production.
	AllowSimulated bool `toml:"allow_simulated"`
	// EvaluationTimeout bounds one Rego rule.
	EvaluationTimeout Duration `toml:"evaluation_timeout"`
}

// References configure reference values.
type References struct {
	// Lifetime is the expiry of values that are stored without one; 0: never.
	Lifetime Duration `toml:"lifetime"`
}

// Limits bound requests. Sizes are in bytes.
type Limits struct {
	Body           int      `toml:"body"`
	Header         int      `toml:"header"`
	Resource       int      `toml:"resource"`
	RequestTimeout Duration `toml:"request_timeout"`
}

// Storage configures the database.
type Storage struct {
	// KEKFile holds the key-encryption key: 32 bytes in hex. Empty: a key in
	// the state directory.
	KEKFile string `toml:"kek_file"`
	// MaxVerdicts is how many verdicts are kept of each class: attestation or
	// resource, granted or refused.
	MaxVerdicts int `toml:"max_verdicts"`
}

// TEE configures the verifiers.
type TEE struct {
	SNP    SNP    `toml:"snp"`
	Sample Sample `toml:"sample"`
}

// SNP configures the SEV-SNP verifier.
type SNP struct {
	Enabled bool `toml:"enabled"`
	// DevelopmentRoots are PEM files (ASK, then ARK) of software TEEs. Their
	// evidence is accepted as simulated.
	DevelopmentRoots []string `toml:"development_roots"`
	AllowDebug       bool     `toml:"allow_debug"`
	// KDS fetches missing certificates from AMD's key service.
	KDS bool `toml:"kds"`
	// CheckRevocation demands AMD's revocation list; needs KDS.
	CheckRevocation bool `toml:"check_revocation"`
	// MinimumTCB is by generation: Milan, Genoa, Turin.
	MinimumTCB map[string]TCB `toml:"minimum_tcb"`
}

// TCB is a set of least patch levels.
type TCB struct {
	FMC        uint8 `toml:"fmc"`
	Bootloader uint8 `toml:"bootloader"`
	TEE        uint8 `toml:"tee"`
	SNP        uint8 `toml:"snp"`
	Microcode  uint8 `toml:"microcode"`
}

// Sample configures the sample TEE, which proves nothing.
type Sample struct {
	Enabled bool `toml:"enabled"`
}

// Duration is a time.Duration written as "5m".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("expected a duration such as \"5m\" or \"90s\", got %q", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// D is the duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		Listen:      "127.0.0.1:8443",
		StateDir:    "/var/lib/coffer-trustee",
		Log:         Log{Level: "info", Format: "text"},
		TLS:         TLS{Names: []string{"localhost", "127.0.0.1", "::1"}},
		Admin:       Admin{Issuer: "coffer", Audience: "KBS", MaxTokenLifetime: Duration(2 * time.Hour)},
		Session:     Session{Timeout: Duration(5 * time.Minute), Max: 50_000},
		Token:       Token{Lifetime: Duration(5 * time.Minute), Issuer: "coffer-trustee", Audience: "coffer-trustee"},
		Attestation: Attestation{VerboseToken: true, MaxConcurrent: 32},
		Policy:      Policy{EvaluationTimeout: Duration(2 * time.Second)},
		References:  References{Lifetime: Duration(365 * 24 * time.Hour)},
		Limits:      Limits{Body: 2 << 20, Header: 1 << 20, Resource: 1 << 20, RequestTimeout: Duration(time.Minute)},
		Storage:     Storage{MaxVerdicts: 100_000},
		TEE:         TEE{SNP: SNP{Enabled: true}},
	}
}

// Load reads a file. Relative paths in it are relative to its directory.
func Load(path string) (Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	if info.Size() > maxFile {
		return Config{}, fmt.Errorf("configuration %s: expected at most %d bytes, got %d", path, maxFile, info.Size())
	}
	data, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c, err := Parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	c.resolve(dir)
	return c, nil
}

// Parse reads TOML over the defaults and validates the outcome.
func Parse(data []byte) (Config, error) {
	if len(data) > maxFile {
		return Config{}, fmt.Errorf("expected at most %d bytes, got %d", maxFile, len(data))
	}
	c := Default()
	meta, err := toml.NewDecoder(bytes.NewReader(data)).Decode(&c)
	if err != nil {
		if e, ok := errors.AsType[toml.ParseError](err); ok {
			return Config{}, fmt.Errorf("line %d: %s", e.Position.Line, strings.TrimSpace(e.Message+" "+e.LastKey))
		}
		return Config{}, err
	}
	var errs []error
	for _, key := range meta.Undecoded() {
		errs = append(errs, fmt.Errorf("%s: unknown key (docs/trustee.md lists all)", key))
	}
	errs = append(errs, spelling(meta.Keys())...)
	errs = append(errs, c.problems()...)
	return c, errors.Join(errs...)
}

// spelling refuses keys in another letter case. The TOML library takes them,
// and of two spellings of one key, which TOML counts as two, either.
func spelling(keys []toml.Key) []error {
	// Tables whose keys are names of the operator's or of AMD's.
	free := []string{"attestation.selectors", "tee.snp.minimum_tcb"}
	var errs []error
	for _, key := range keys {
		for i, part := range key {
			if part != strings.ToLower(part) && !slices.Contains(free, key[:i].String()) {
				errs = append(errs, fmt.Errorf("%s: expected the key in lower case, got %q", key, part))
			}
		}
	}
	return errs
}

// Validate reports every problem at once.
func (c *Config) Validate() error { return errors.Join(c.problems()...) }

func (c *Config) problems() []error {
	var p problems
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || port == "" {
		p.add("listen", "a TCP address host:port", c.Listen)
	}
	p.notEmpty("state_dir", c.StateDir)
	p.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	p.oneOf("log.format", c.Log.Format, "text", "json")
	if (c.TLS.Certificate == "") != (c.TLS.PrivateKey == "") {
		p.add("tls.certificate and tls.private_key", "both or neither", "one of them")
	}
	if c.TLS.Root != "" && c.TLS.Certificate == "" {
		p.add("tls.root", "tls.certificate beside it", "none")
	}
	if c.TLS.Certificate == "" && !c.TLS.InsecureHTTP && len(c.TLS.Names) == 0 {
		p.add("tls.names", "at least one DNS name or address", "none")
	}
	if ip := net.ParseIP(host); c.TLS.InsecureHTTP && (ip == nil || !ip.IsLoopback()) {
		p.add("tls.insecure_http", "false, or listen on a loopback address", "true with listen "+c.Listen)
	}
	p.notEmpty("admin.audience", c.Admin.Audience)
	p.positive("admin.max_token_lifetime", c.Admin.MaxTokenLifetime.D(), 10*365*24*time.Hour)
	p.positive("session.timeout", c.Session.Timeout.D(), 24*time.Hour)
	p.between("session.max", c.Session.Max, 1, 10_000_000)
	p.positive("token.lifetime", c.Token.Lifetime.D(), 24*time.Hour)
	p.notEmpty("token.issuer", c.Token.Issuer)
	p.notEmpty("token.audience", c.Token.Audience)
	for name, id := range c.Attestation.Selectors {
		if name == "" || !policyID(id) {
			p.add("attestation.selectors."+name, "a policy id of letters, digits, - and _", id)
		}
	}
	p.between("attestation.max_concurrent", c.Attestation.MaxConcurrent, 1, 100_000)
	p.positive("policy.evaluation_timeout", c.Policy.EvaluationTimeout.D(), time.Minute)
	if c.References.Lifetime < 0 {
		p.add("reference_values.lifetime", "0 or more", c.References.Lifetime.D().String())
	}
	p.between("limits.body", c.Limits.Body, 64<<10, 64<<20)
	p.between("limits.header", c.Limits.Header, 16<<10, 8<<20)
	p.between("limits.resource", c.Limits.Resource, 1, 16<<20)
	p.positive("limits.request_timeout", c.Limits.RequestTimeout.D(), time.Hour)
	p.between("storage.max_verdicts", c.Storage.MaxVerdicts, 100, 100_000_000)
	if !c.TEE.SNP.Enabled && !c.TEE.Sample.Enabled {
		p.add("tee", "at least one enabled environment", "none")
	}
	if c.TEE.SNP.CheckRevocation && !c.TEE.SNP.KDS {
		p.add("tee.snp.check_revocation", "tee.snp.kds = true beside it", "false")
	}
	for g := range c.TEE.SNP.MinimumTCB {
		p.oneOf("tee.snp.minimum_tcb", g, "Milan", "Genoa", "Turin")
	}
	return p
}

// Warnings says in plain words what the configuration relaxes.
func (c *Config) Warnings() []string {
	var w []string
	if c.Policy.AllowSimulated {
		w = append(w, "policy.allow_simulated: the built-in resource policy releases secrets to software TEEs, which protect nothing from their host; for development only")
	}
	if n := len(c.TEE.SNP.DevelopmentRoots); n > 0 {
		w = append(w, fmt.Sprintf("tee.snp.development_roots: evidence under %d root(s) that are not AMD's is accepted as simulated", n))
	}
	if c.TEE.SNP.AllowDebug {
		w = append(w, "tee.snp.allow_debug: guests whose memory the host can read are accepted as genuine")
	}
	if c.TEE.Sample.Enabled {
		w = append(w, "tee.sample: evidence that anyone can write is accepted as simulated; for interoperability tests only")
	}
	if c.TLS.InsecureHTTP {
		w = append(w, "tls.insecure_http: administrators' tokens and resources they upload travel in the clear")
	}
	return w
}

func (c *Config) resolve(dir string) {
	paths := []*string{&c.StateDir, &c.TLS.Certificate, &c.TLS.PrivateKey, &c.TLS.Root, &c.Storage.KEKFile}
	for _, list := range [][]string{c.Admin.PublicKeys, c.Token.KeyFiles, c.TEE.SNP.DevelopmentRoots} {
		for i := range list {
			paths = append(paths, &list[i])
		}
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

func policyID(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

type problems []error

func (p *problems) add(key, expected, got string) {
	*p = append(*p, fmt.Errorf("%s: expected %s, got %s", key, expected, got))
}

func (p *problems) notEmpty(key, v string) {
	if v == "" {
		p.add(key, "a value", "an empty string")
	}
}

func (p *problems) oneOf(key, v string, options ...string) {
	if !slices.Contains(options, v) {
		p.add(key, "one of "+strings.Join(options, ", "), fmt.Sprintf("%q", v))
	}
}

func (p *problems) between(key string, v, lo, hi int) {
	if v < lo || v > hi {
		p.add(key, fmt.Sprintf("%d to %d", lo, hi), fmt.Sprint(v))
	}
}

func (p *problems) positive(key string, v, hi time.Duration) {
	if v <= 0 || v > hi {
		p.add(key, fmt.Sprintf("more than 0 and at most %v", hi), v.String())
	}
}
