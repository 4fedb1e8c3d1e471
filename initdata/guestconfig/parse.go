package guestconfig

import (
	"strings"

	"github.com/coffer-project/coffer/kbs"
)

// Values that mean the same as an absent key, as the guest components'
// documentation and examples write them.
const (
	defaultCDHSocket = "unix:///run/confidential-containers/cdh.sock"
	defaultAASocket  = "unix:///run/confidential-containers/attestation-agent/attestation-agent.sock"
	defaultWorkDir   = "/run/kata-containers/image/"
	defaultLogLevel  = "info"
	defaultPCR       = int64(17)
	minPCR, maxPCR   = 10, 16
	// kbcName is the only key broker client that is not a stub.
	kbcName = "cc_kbc"
)

// Limits of lists and numbers.
const (
	maxExtraRoots  = 64
	maxConcurrency = 32
	maxSelector    = 256
	maxLocation    = 512
	whyNoSockets   = "its parts share one process and no socket"
	whyNoLogLevel  = "logging is set by the measured kernel command line"
)

// parseAA reads aa.toml.
func parseAA(t *table, c *Config) broker {
	var b broker
	tokens := t.sub("token_configs")
	as := tokens.sub("coco_as")
	if s := as.str("url"); s != "" {
		if err := kbs.CheckServiceURL(s); err != nil {
			t.r.fail(as.where("url"), "%v", err)
		}
		c.ServiceURL = strings.TrimRight(s, "/")
	} else if as.left != nil {
		t.r.fail(as.where("url"), "is missing")
	}
	as.done()
	k := tokens.sub("kbs")
	b.url, b.cert = k.brokerURL("url"), k.pem("cert")
	c.KeyType = k.keyType("tee_key_algorithm")
	if c.PolicySelector = k.str("attestation_policy_selector"); len(c.PolicySelector) > maxSelector {
		t.r.fail(k.where("attestation_policy_selector"), "has %d bytes, the limit is %d", len(c.PolicySelector), maxSelector)
	}
	k.needURL(b, "url", "cert")
	k.done()
	tokens.done()
	log := t.sub("eventlog_config")
	c.EventLog.Enabled, _ = take1[bool](log, "enable_eventlog", "true or false")
	if n, ok := take1[int64](log, "init_pcr", "a number"); ok && n != defaultPCR {
		// The registers below are the firmware's, the boot loader's and, the
		// eighth, the initdata's; those above 16 belong to dynamic launch.
		if n < minPCR || n > maxPCR {
			t.r.fail(log.where("init_pcr"), "expected %d, or %d to %d, got %d", defaultPCR, minPCR, maxPCR, n)
		}
		c.EventLog.PCR = int(n)
	}
	log.done()
	t.logTable()
	t.done()
	return b
}

// parseCDH reads cdh.toml.
func parseCDH(t *table, c *Config) broker {
	var b broker
	t.notYet("socket", whyNoSockets, defaultCDHSocket)
	t.notYet("skip_sealed_secret_verification", "sealed secrets are always verified", false)
	c.Credentials = parseCredentials(t)
	aa := t.sub("aa")
	aa.notYet("aa_socket", whyNoSockets, defaultAASocket)
	aa.done()
	k := t.sub("kbc")
	if k.left != nil {
		if name := k.str("name"); name != kbcName {
			t.r.fail(k.where("name"), "expected %q, got %.64q: the guest has no other key broker client", kbcName, name)
		}
	}
	b.url, b.cert = k.brokerURL("url"), k.pem("kbs_cert")
	k.needURL(b, "url", "kbs_cert")
	k.done()
	parseImage(t.sub("image"), &c.Image)
	t.logTable()
	t.done()
	return b
}

func parseImage(t *table, image *Image) {
	image.SecurityPolicy = t.str("image_security_policy")
	image.SecurityPolicyURI = t.resource("image_security_policy_uri")
	t.either("image_security_policy", image.SecurityPolicy != "", image.SecurityPolicyURI != "")
	image.CredentialsURI = t.resource("authenticated_registry_credentials_uri")
	image.ExtraRoots = t.strs("extra_root_certificates")
	if n := len(image.ExtraRoots); n > maxExtraRoots {
		t.r.fail(t.where("extra_root_certificates"), "has %d entries, the limit is %d", n, maxExtraRoots)
		image.ExtraRoots = nil
	}
	for i, s := range image.ExtraRoots {
		if _, err := kbs.ParseRoots([]byte(s)); err != nil {
			t.r.fail(t.where("extra_root_certificates"), "entry %d: %v", i+1, err)
		}
		image.ExtraRoots[i] = trimPEM(s)
	}
	if n, ok := take1[int64](t, "max_concurrent_layer_downloads_per_image", "a number"); ok {
		if n < 1 || n > maxConcurrency {
			t.r.fail(t.where("max_concurrent_layer_downloads_per_image"), "expected 1 to %d, got %d", maxConcurrency, n)
		} else {
			image.MaxConcurrentDownloads = int(n)
		}
	}
	t.notYet("work_dir", "images are kept in the guest's memory", defaultWorkDir)
	image.SigstoreConfig = t.str("sigstore_config")
	image.SigstoreConfigURI = t.resource("sigstore_config_uri")
	t.either("sigstore_config", image.SigstoreConfig != "", image.SigstoreConfigURI != "")
	image.RegistriesURI = t.resource("registry_configuration_uri")
	_, inline := t.left["registry_config"]
	t.either("registry_config", inline, image.RegistriesURI != "")
	image.Registries = t.registries("registry_config")
	image.Proxy = t.proxy("image_pull_proxy")
	t.done()
}

// clip shortens a part of the document for a message.
func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

// logTable reads [log], which both files have.
func (t *table) logTable() {
	log := t.sub("log")
	log.notYet("level", whyNoLogLevel, defaultLogLevel)
	log.done()
}

// brokerURL reads a broker's URL, without a trailing slash.
func (t *table) brokerURL(key string) string {
	s := t.str(key)
	if s == "" {
		return ""
	}
	if err := kbs.CheckURL(s); err != nil {
		t.r.fail(t.where(key), "%v", err)
	}
	return strings.TrimRight(s, "/")
}

// pem reads certificates.
func (t *table) pem(key string) string {
	s := trimPEM(t.str(key))
	if s == "" {
		return ""
	}
	if _, err := kbs.ParseRoots([]byte(s)); err != nil {
		t.r.fail(t.where(key), "%v", err)
	}
	return s
}

// needURL refuses a broker's table that names no broker.
func (t *table) needURL(b broker, url, cert string) {
	if t.left == nil || b.url != "" {
		return
	}
	if b.cert != "" {
		t.r.fail(t.where(url), "is missing, though %s is set", cert)
		return
	}
	t.r.fail(t.where(url), "is missing")
}

// resource reads a URI of the key broker. The guest components accept files
// as well; a file of the guest image would not be the owner's word.
func (t *table) resource(key string) string {
	s := t.str(key)
	if s == "" {
		return ""
	}
	u, err := kbs.ParseResourceURI(s)
	if err != nil {
		t.r.fail(t.where(key), "%v", err)
		return ""
	}
	t.r.uris = append(t.r.uris, namedURI{t.where(key), u})
	return u.String()
}

// keyType reads a kind of TEE key; the default one is "".
func (t *table) keyType(key string) kbs.KeyType {
	switch k := kbs.KeyType(t.str(key)); k {
	case "", kbs.KeyP256:
	case kbs.KeyP521, kbs.KeyRSA, kbs.KeyMLKEM:
		return k
	default:
		t.r.fail(t.where(key), "expected %s, %s, %s or %s, got %q", kbs.KeyP256, kbs.KeyP521, kbs.KeyRSA, kbs.KeyMLKEM, clip(string(k)))
	}
	return ""
}
