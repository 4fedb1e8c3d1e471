package agent

import (
	"bytes"
	"context"
	"fmt"

	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/guest/datahub"
	"github.com/coffer-project/coffer/internal/guest/measurement"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/podpolicy"
)

// openHub opens the data hub, with the trustees that initdata names. A pod without
// a key broker has one that fails. Who attests shows what was measured until then.
func (a *Agent) openHub(sb *sandbox, config BrokerConfig) error {
	config.Attester = a.o.Attestation.Attester()
	if sb.guest.EventLog.Enabled {
		sb.recorder, config.Attester, config.Devices = measurement.Open(config.Attester, sb.guest.EventLog.PCR)
	}
	if a.o.Devices != nil {
		attached, err := a.o.Devices()
		if err != nil {
			return err
		}
		config.Devices = append(config.Devices, attached...)
	}
	config.KeyType, config.PolicySelector = sb.guest.KeyType, sb.guest.PolicySelector
	bad := func(path string, err error) error {
		return &podpolicy.Refusal{Rule: RuleInitdataContent, Path: path, Expected: "a key broker that can be asked", Got: clip(err.Error())}
	}
	o := datahub.Options{Providers: a.o.Providers, Logger: a.log}
	var err error
	if url := sb.guest.ServiceURL; url != "" && a.o.NewService != nil {
		if o.Service, err = a.o.NewService(url, config.Attester); err != nil {
			return bad("token_configs.coco_as", err)
		}
	}
	sb.hub, err = datahub.Connect(&sb.guest, o, func(t guestconfig.Trustee) (datahub.Broker, error) {
		c := config
		c.URL, c.RootPEM = t.URL, t.RootPEM
		return a.o.NewBroker(c)
	})
	if err != nil {
		return bad("trustee", err)
	}
	sb.trustee = sb.guest.URL
	sb.attester, sb.additional = config.Attester, config.Devices
	return nil
}

// imageConfig gets, once, what decides about images: the signature policy, the
// registries and the credentials for them.
func (sb *sandbox) imageConfig(ctx context.Context, read func(policy, lookaside []byte, c RegistryConfig) (*signature.Policy, error)) (*signature.Policy, RegistryConfig, error) {
	err := sb.under(ctx, func() error {
		if sb.registry != nil {
			return nil
		}
		image := &sb.guest.Image
		registry := RegistryConfig{Image: *image, Unsealed: !sb.guard.Sealed()}
		if sb.trustee != "" {
			registry.AskTrustee = sb.hub.Ask
		}
		if uri := image.CredentialsURI; uri != "" {
			credentials, err := sb.hub.Resource(ctx, uri)
			if err != nil {
				return fmt.Errorf("registry credentials: %w", err)
			}
			registry.Credentials = credentials
		} else if sb.auth.Len() > 0 {
			registry.Credentials = sb.auth
		}
		if uri := image.RegistriesURI; uri != "" {
			document, err := sb.document(ctx, "", uri)
			if err == nil {
				registry.Image.Registries, err = guestconfig.ParseRegistries(document)
			}
			if err != nil {
				return fmt.Errorf("registry configuration: %w", err)
			}
		}
		policy, err := sb.document(ctx, image.SecurityPolicy, image.SecurityPolicyURI)
		if err != nil {
			return fmt.Errorf("image signature policy: %w", err)
		}
		lookaside, err := sb.document(ctx, image.SigstoreConfig, image.SigstoreConfigURI)
		if err != nil {
			return fmt.Errorf("sigstore configuration: %w", err)
		}
		// Without a policy in initdata, the digest that the pod policy pins is
		// what vouches for an image.
		judge := signature.InsecureAcceptAnything()
		if len(policy) > 0 {
			if judge, err = read(policy, lookaside, registry); err != nil {
				return fmt.Errorf("image signature policy: %w", err)
			}
		}
		sb.signature, sb.registry = judge, &registry
		return nil
	})
	if err != nil {
		return nil, RegistryConfig{}, err
	}
	return sb.signature, *sb.registry, nil
}

// document is a text, or what a URI names, which must not be empty.
func (sb *sandbox) document(ctx context.Context, text, uri string) ([]byte, error) {
	if uri == "" {
		return bytes.TrimSpace([]byte(text)), nil
	}
	value, err := sb.hub.Resource(ctx, uri)
	if err != nil {
		return nil, err
	}
	document := bytes.TrimSpace(value.Expose())
	if len(document) == 0 {
		return nil, fmt.Errorf("%s is empty", uri)
	}
	return document, nil
}
