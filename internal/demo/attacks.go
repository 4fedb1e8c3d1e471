package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/guestimage/cpio"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/tee"
)

// tamperLaunch starts machines with another command line and another initrd.
func (w *world) tamperLaunch(ctx context.Context) (string, error) {
	launch, _, err := run.GuestLaunch(w.guest())
	if err != nil {
		return "", err
	}
	backdoor, err := appendFile(launch.Initrd, "backdoor", []byte("#!/bin/sh\n"))
	if err != nil {
		return "", err
	}
	return all(
		func() (string, error) {
			return w.launchTampered(ctx, "kernel command line + \"init.debug=1\"", "cmdline", sandbox.Override{AppendCmdline: "init.debug=1"})
		},
		func() (string, error) {
			return w.launchTampered(ctx, "initrd + /backdoor", "initrd", sandbox.Override{Initrd: backdoor})
		},
	)
}

func (w *world) launchTampered(ctx context.Context, what, input string, override sandbox.Override) (string, error) {
	sb, err := w.launch(ctx, w.initdata.Digest, override, &w.tampered)
	if err != nil {
		return "", err
	}
	defer func() { _ = sb.Close() }()
	if err := w.createSandbox(ctx, sb, w.initdata); err != nil {
		return "", err
	}
	good := hexOf(w.pod.Info().Measurement)
	return refused(what, w.create(ctx, sb, appName, w.app, nil), "trustee", good, hexOf(sb.Info().Measurement), "manifest: "+input)
}

// appendFile appends an archive with one program to an initrd; the kernel
// unpacks archives one after the other.
func appendFile(initrd []byte, name string, content []byte) ([]byte, error) {
	var b bytes.Buffer
	c := cpio.NewWriter(&b)
	if err := c.Add(cpio.Entry{Name: name, Mode: 0o100755, Data: content}); err != nil {
		return nil, err
	}
	if err := c.Close(); err != nil {
		return nil, err
	}
	return cpio.Join(initrd, b.Bytes()), nil
}

// tamperInitdata lets the host read the quiet container's output.
func (w *world) tamperInitdata(ctx context.Context) (string, error) {
	policy, err := podpolicy.Parse(w.options.Policy)
	if err != nil {
		return "", err
	}
	for i := range policy.Containers {
		policy.Containers[i].Allow.Logs = true
	}
	options := w.options
	if options.Policy, err = policy.Canonical(); err != nil {
		return "", err
	}
	edited, err := run.NewInitdata(options)
	if err != nil {
		return "", err
	}
	if bytes.Equal(edited.Digest, w.initdata.Digest) {
		return "", errors.New("the edit changed nothing")
	}
	return all(
		func() (string, error) {
			before, err := w.trustee.Admin.Verdicts(ctx, admin.VerdictQuery{Limit: 1})
			if err != nil {
				return "", err
			}
			line, err := w.launchEdited(ctx, "pod policy edited to allow logs", w.initdata.Digest,
				func(sb *sandbox.Sandbox) error { return w.createSandbox(ctx, sb, edited) },
				"initdata", hexOf(tee.Fit(w.initdata.Digest, 32)), hexOf(edited.Digest))
			if err != nil {
				return line, err
			}
			after, err := w.trustee.Admin.Verdicts(ctx, admin.VerdictQuery{Limit: 1})
			if err != nil {
				return line, err
			}
			if len(after) != len(before) || len(after) > 0 && !after[0].At.Equal(before[0].At) {
				return line, errors.New("the trustee was asked")
			}
			return line + "\n  → the trustee was not asked", nil
		},
		func() (string, error) {
			return w.launchEdited(ctx, "pod policy edited, HOST_DATA changed to match", edited.Digest,
				func(sb *sandbox.Sandbox) error {
					if err := w.createSandbox(ctx, sb, edited); err != nil {
						return fmt.Errorf("the guest refused already: %w", err)
					}
					return w.create(ctx, sb, appName, w.app, nil)
				}, "trustee", "registered", hexOf(edited.Digest))
		},
	)
}

func (w *world) launchEdited(ctx context.Context, what string, hostData []byte, attempt func(*sandbox.Sandbox) error, says ...string) (string, error) {
	sb, err := w.launch(ctx, hostData, sandbox.Override{}, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = sb.Close() }()
	return refused(what, attempt(sb), says...)
}

// tamperImage is the registry lying to the pod of act run.
func (w *world) tamperImage(ctx context.Context) (string, error) {
	defer w.registry.setFaults(faults{})
	return all(
		func() (string, error) {
			w.registry.setFaults(faults{swap: map[string]string{w.next.Digest.String(): w.other.Digest.String()}})
			return refused("another image, signed by the same owner too, under the tag v2", w.create(ctx, w.pod, swappedName, w.next, nil), w.next.Digest.String())
		},
		func() (string, error) {
			w.registry.setFaults(faults{corrupt: map[string]bool{w.layer.String(): true}})
			return refused("a corrupted layer", w.create(ctx, w.pod, corruptName, w.next, nil), w.layer.String())
		},
		func() (string, error) {
			w.registry.setFaults(faults{})
			return refused("an unsigned image", w.create(ctx, w.pod, unsignedName, w.unsigned, nil), "sign")
		},
	)
}

// replay presents evidence that is genuine but not this handshake's.
func (w *world) replay(ctx context.Context) (string, error) {
	attempt := func(what string, evidence json.RawMessage) func() (string, error) {
		return func() (string, error) {
			if evidence == nil {
				return "", errors.New("no evidence was captured")
			}
			return refused(what, w.present(ctx, evidence), "report_data")
		}
	}
	return all(
		attempt("evidence of the pod's earlier handshake, with a new key", w.reports.last()),
		attempt("evidence of another machine, with a new key", w.tampered.last()),
	)
}

// present runs a handshake of the attacker's own with somebody else's evidence.
func (w *world) present(ctx context.Context, evidence json.RawMessage) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.trustee.RootPEM)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	defer client.CloseIdleConnections()
	key, err := kbs.GenerateTEEKey(rand.Reader)
	if err != nil {
		return err
	}
	body, err := json.Marshal(kbs.Request{Version: kbs.V040, TEE: tee.SNP})
	if err != nil {
		return err
	}
	answer, cookies, err := post(ctx, client, w.trustee.URL+kbs.AuthPath, body, nil)
	if err != nil {
		return fmt.Errorf("auth: %w", err)
	}
	challenge, err := kbs.ParseChallenge(answer)
	if err != nil {
		return err
	}
	none := ""
	body, err = json.Marshal(kbs.Attestation{
		Version: kbs.V040, Nonce: challenge.Nonce, TEEKey: key.Public(), Evidence: evidence, Additional: &none,
		InitData: &kbs.InitData{Format: "toml", Body: string(w.initdata.Raw)},
	})
	if err != nil {
		return err
	}
	_, _, err = post(ctx, client, w.trustee.URL+kbs.AttestPath, body, cookies)
	return err
}

func post(ctx context.Context, client *http.Client, url string, body []byte, cookies []*http.Cookie) ([]byte, []*http.Cookie, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	for _, c := range cookies {
		req.AddCookie(c)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, kbs.MaxResponseBytes))
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return answer, resp.Cookies(), nil
	}
	var problem kbs.ErrorInfo
	if err := json.Unmarshal(answer, &problem); err != nil {
		return nil, nil, fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(answer)))
	}
	if problem.Reason != nil {
		return nil, nil, fmt.Errorf("%s: %s", resp.Status, problem.Reason)
	}
	return nil, nil, fmt.Errorf("%s: %s", resp.Status, problem.Detail)
}
