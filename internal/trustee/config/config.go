// Package config is the trustee's configuration: a TOML file in which every
// key is known, every value checked, and every problem reported at once.
// docs/trustee-configuration.md is its reference, deploy/trustee/trustee.toml an example
// with every key.
package config

import (
	"fmt"
	"time"
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
	Proxy       Proxy       `toml:"proxy"`
	Admin       Admin       `toml:"admin"`
	Session     Session     `toml:"session"`
	Token       Token       `toml:"token"`
	Attestation Attestation `toml:"attestation"`
	Service     Service     `toml:"attestation_service"`
	Policy      Policy      `toml:"policy"`
	References  References  `toml:"reference_values"`
	Limits      Limits      `toml:"limits"`
	Storage     Storage     `toml:"storage"`
	Resources   Resources   `toml:"resources"`
	Plugins     Plugins     `toml:"plugins"`
	Audit       Audit       `toml:"audit"`
	Webhooks    []Webhook   `toml:"webhook"`
	Metrics     Metrics     `toml:"metrics"`
	Tracing     Tracing     `toml:"tracing"`
	TEE         TEE         `toml:"tee"`
	Collateral  Collateral  `toml:"collateral"`
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

// Proxy says which load balancers may tell the address of a client.
type Proxy struct {
	// Trusted are networks (CIDR) from which a PROXY protocol header is
	// believed.
	Trusted []string `toml:"trusted"`
	// Required refuses their connections without one, health checks too.
	Required bool `toml:"required"`
}

// Session configures handshakes.
type Session struct {
	// Timeout counts from the challenge.
	Timeout Duration `toml:"timeout"`
}

// Token configures attestation tokens.
type Token struct {
	Lifetime Duration `toml:"lifetime"`
	Issuer   string   `toml:"issuer"`
	Audience string   `toml:"audience"`
	// Algorithm is ES256 or ES384: what a new signing key is for.
	Algorithm string `toml:"algorithm"`
	// Trusted are other attestation services whose tokens release resources
	// (passport model).
	Trusted []TrustedIssuer `toml:"trusted"`
}

// TrustedIssuer is another attestation service.
type TrustedIssuer struct {
	// Issuer and Audience are required of its tokens.
	Issuer   string `toml:"issuer"`
	Audience string `toml:"audience"`
	// JWKS is a file or https URL with its keys.
	JWKS string `toml:"jwks"`
	// Certificates is a PEM file of roots that the x5c chain of a key in a
	// token's header must end in. Exactly one of it and JWKS is set.
	Certificates string `toml:"certificates"`
	// Tenant is the one tenant its tokens count for; empty: the default one.
	Tenant string `toml:"tenant"`
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

// Service configures the attestation service on its own listener, for key
// brokers of others (gRPC and REST).
type Service struct {
	// Listen is its TCP address; empty: off.
	Listen string `toml:"listen"`
	// Audience is that of its tokens; it must not be token.audience.
	Audience string `toml:"audience"`
	// OpenReads lets anyone read policies and reference values there.
	OpenReads bool `toml:"open_reads"`
}

// Limits bound requests. Sizes are in bytes.
type Limits struct {
	Body           int      `toml:"body"`
	Header         int      `toml:"header"`
	Resource       int      `toml:"resource"`
	RequestTimeout Duration `toml:"request_timeout"`
	// Rate is how many requests a client may make per second in the long run,
	// Burst how many at once, Concurrent how many may be under way.
	Rate       float64 `toml:"rate"`
	Burst      int     `toml:"burst"`
	Concurrent int     `toml:"concurrent"`
	// Clients is how many clients are told apart.
	Clients int `toml:"clients"`
	// Connections is how many may be open; more wait to be accepted. Each may
	// hold a header before any other limit looks at it.
	Connections int `toml:"connections"`
	// DrainDelay is how long all requests are served on after a stop, with
	// /readyz at 503, until a load balancer sends no more of them.
	DrainDelay Duration `toml:"drain_delay"`
	// Drain is how long requests under way may take after that.
	Drain Duration `toml:"drain"`
}

// Audit configures the audit log.
type Audit struct {
	// Retention is how long records are kept; 0: for ever.
	Retention Duration `toml:"retention"`
	// Checkpoint is how often a chain that grew gets a signed checkpoint.
	Checkpoint Duration `toml:"checkpoint_interval"`
}

// Webhook is told of refusals, or of whatever else the audit log records.
type Webhook struct {
	// Name tells its place in the log from others'.
	Name string `toml:"name"`
	URL  string `toml:"url"`
	// SecretFile holds the key of the HMAC-SHA-256 signature of each call.
	SecretFile string `toml:"secret_file"`
	// Tenant whose events it gets; "*": everybody's.
	Tenant string `toml:"tenant"`
	// Events are webhook.Types; none: attestation.failed.
	Events []string `toml:"events"`
	// Roots is a PEM file of the certificates that vouch for the receiver;
	// empty: the system's.
	Roots string `toml:"roots"`
}

// Metrics configures GET /metrics.
type Metrics struct {
	Enabled bool `toml:"enabled"`
}

// Tracing configures the export of traces by OTLP over HTTP.
type Tracing struct {
	// Endpoint is the collector's URL; empty: no traces.
	Endpoint string `toml:"endpoint"`
	// SampleRatio is the share of traces that are kept, 0 to 1.
	SampleRatio float64 `toml:"sample_ratio"`
	// HeadersFile holds "name: value" lines sent to the collector.
	HeadersFile string `toml:"headers_file"`
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
		Session:     Session{Timeout: Duration(5 * time.Minute)},
		Token:       Token{Lifetime: Duration(5 * time.Minute), Issuer: "coffer-trustee", Audience: "coffer-trustee", Algorithm: "ES256"},
		Attestation: Attestation{VerboseToken: true, MaxConcurrent: 32},
		Service:     Service{Audience: "coffer-attestation-service"},
		Policy:      Policy{EvaluationTimeout: Duration(2 * time.Second)},
		References:  References{Lifetime: Duration(365 * 24 * time.Hour), Unsigned: []string{"sample"}},
		Limits: Limits{
			Body: 2 << 20, Header: 1 << 20, Resource: 1 << 20, RequestTimeout: Duration(time.Minute),
			Rate: 50, Burst: 200, Concurrent: 64, Clients: 100_000, Connections: 4096, Drain: Duration(10 * time.Second),
		},
		Storage:    Storage{KEK: KEK{Kind: "file", Transit: Transit{Mount: "transit", Vault: Vault{Timeout: Duration(5 * time.Second)}}}, Database: Database{MaxConnections: 16, RetryFor: Duration(20 * time.Second)}},
		Resources:  Resources{Backend: "database", Vault: VaultKV{Vault: Vault{Timeout: Duration(5 * time.Second)}, Mount: "secret", Prefix: "coffer", Field: "data", Encoding: "base64"}},
		Plugins:    Plugins{PKI: PKI{TrustDomain: "coffer.internal"}},
		Audit:      Audit{Checkpoint: Duration(time.Minute)},
		Metrics:    Metrics{Enabled: true},
		Tracing:    Tracing{SampleRatio: 1},
		TEE:        defaultTEE(),
		Collateral: Collateral{Update: "standard", MaxAge: Duration(24 * time.Hour), Timeout: Duration(30 * time.Second)},
	}
}
