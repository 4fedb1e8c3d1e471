package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/run"
)

// serviceFlags are the flags that say what guests do besides running containers.
type serviceFlags struct {
	named, namedCA []string
	rest           string
	eventLog       bool
}

func (s *serviceFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&s.named, "named-trustee", nil, "NAME=URL of a further trustee, for kbs://NAME/REPOSITORY/TYPE/TAG (repeatable)")
	f.StringArrayVar(&s.namedCA, "named-trustee-ca", nil, "NAME=FILE with the certificates that vouch for a further trustee (repeatable)")
	f.StringVar(&s.rest, "rest-api", "", "what containers may ask at 127.0.0.1:8006: none, resource, attestation or all (default: resource)")
	f.BoolVar(&s.eventLog, "event-log", false, "measure images, containers and commands, and show the log in the evidence")
}

// read judges the flags.
func (s *serviceFlags) read() (run.GuestServices, error) {
	services := run.GuestServices{REST: guestconfig.Features(s.rest), EventLog: s.eventLog}
	if features := []guestconfig.Features{"", guestconfig.FeaturesNone, guestconfig.FeaturesResource, guestconfig.FeaturesAttestation, guestconfig.FeaturesAll}; !slices.Contains(features, services.REST) {
		return services, usagef("--rest-api: expected none, resource, attestation or all, got %q", s.rest)
	}
	urls, err := keyValues("--named-trustee", s.named)
	if err != nil {
		return services, err
	}
	files, err := keyValues("--named-trustee-ca", s.namedCA)
	if err != nil {
		return services, err
	}
	for _, kv := range s.named {
		name, url, _ := strings.Cut(kv, "=")
		t := guestconfig.Trustee{Name: name, URL: url}
		if file, ok := files[name]; ok {
			data, err := readSmall(file, maxPEM)
			if err != nil {
				return services, usagef("--named-trustee-ca: %w", err)
			}
			t.RootPEM = string(data)
		}
		services.Trustees = append(services.Trustees, t)
	}
	for name := range files {
		if _, ok := urls[name]; !ok {
			return services, usagef("--named-trustee-ca %s: expected --named-trustee %s=URL with it", name, name)
		}
	}
	return services, nil
}
