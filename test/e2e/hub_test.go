package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// asks are functions of a container's script: body prints what an address
// answers, code its status when that is no success.
const asks = `
body() { wget -q -O - "http://127.0.0.1:8006$1"; }
code() { body "$1" 2>&1 >/dev/null | sed -n 's/.*HTTP.1.1 //p'; }
`

// boundElsewhere puts a resource into the embedded trustee, for pods with other initdata.
func (s *suite) boundElsewhere(t *testing.T, state, uri, value string) {
	t.Helper()
	s.program(t, state, "coffer", "trustee", "secret", "set", uri, write(t, "value", []byte(value))).expect(0)
	s.program(t, state, "coffer", "trustee", "bind", uri, strings.Repeat("1", 64)).expect(0)
}

// TestRESTAPI asks the data hub from inside a container: for the pod's own
// resource, for another's, and for what the owner did or did not turn on.
func TestRESTAPI(t *testing.T) {
	s := need(t)
	t.Parallel()
	state := t.TempDir()
	own, other := s.newSecret("a resource of the pod"), s.newSecret("a resource of another pod")
	s.program(t, state, "coffer", "trustee", "secret", "set", "kbs:///shop/db/password", write(t, "value", []byte(own))).expect(0)
	s.boundElsewhere(t, state, "kbs:///bank/db/password", other)
	const script = asks + `
echo "own $(body /cdh/resource/shop/db/password | sha256sum)"
echo "other $(code /cdh/resource/bank/db/password)"
echo "absent $(code /cdh/resource/shop/db/nothing)"
echo "path $(code /etc/passwd)"
echo "info $(body /info)"
echo "token $(code '/aa/token?token_type=kbs')"
body '/aa/token?token_type=kbs' > /tmp/token 2>/dev/null && grep -q '"token":"ey.*BEGIN .*PRIVATE KEY' /tmp/token && echo "has a token"
body '/aa/evidence?runtime_data=abc' > /tmp/evidence 2>/dev/null && grep -q attestation_report /tmp/evidence && echo "has evidence"
wget -q -O - --header 'Content-Type: application/json' --post-data '{"domain":"shop","operation":"Sold","content":"a book"}' http://127.0.0.1:8006/aa/aael 2>/dev/null && echo
true`
	flags := []string{"-q", "--secret-env", "P=kbs:///shop/db/password"}
	for _, tt := range []struct {
		name     string
		flags    []string
		want     []string
		unwanted []string
	}{
		{"all", []string{"--rest-api", "all", "--event-log"},
			[]string{"info {", `"tee":`, "token \n", "has a token\n", "has evidence\n", `{"success":"true"}`}, nil},
		{"default", nil, []string{"token 404 "}, []string{"has a token", "has evidence", "success"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			stdout, _ := s.run(t, state, append(append(flags, tt.flags...), s.local(t).layout, "--", script)...).expect(0)
			contains(t, "stdout", stdout, append(tt.want, "own "+sha256Hex(own), "other 500 ", "absent 500 ", "path 404 ")...)
			for _, text := range tt.unwanted {
				if strings.Contains(stdout, text) {
					t.Errorf("unexpected %q in:\n%s", text, stdout)
				}
			}
		})
	}
}

// TestSealedSecrets gives a container sealed secrets, as a variable and as a file,
// and refuses one that somebody else has sealed.
func TestSealedSecrets(t *testing.T) {
	s := need(t)
	t.Parallel()
	r, state, dir := s.registryFor(t), t.TempDir(), t.TempDir()
	image, ca := s.pushPlain(t, r, "sealed"), []string{"--registry-ca", r.ca}
	vault, envelope := s.newSecret("a secret in a vault"), s.newSecret("a secret in an envelope")
	key, other := filepath.Join(dir, "owner"), filepath.Join(dir, "other")
	coffer := func(args ...string) string {
		t.Helper()
		stdout, _ := s.program(t, state, "coffer", append([]string{"secret"}, args...)...).expect(0)
		return strings.TrimSpace(stdout)
	}
	coffer("keygen", "--kid", "kbs:///shop/sealing/key", "--out", key, "--put")
	coffer("keygen", "--kid", "kbs:///shop/sealing/key", "--out", other)
	inVault := coffer("seal", "vault", "--sign-key", key+".private.jwk", "--resource", "kbs:///shop/db/password", "--put", write(t, "vault", []byte(vault)))
	inEnvelope := coffer("seal", "envelope", "--sign-key", key+".private.jwk", "--kek", "kbs:///shop/sealing/kek", write(t, "envelope", []byte(envelope)))

	const script = `printf %s "$P" | sha256sum; sha256sum < /secrets/db/password; ls -l /secrets/db/`
	args := append(ca, "--user", "0:0", "--secret-env", "P="+inVault, image)
	printed, _ := s.run(t, state, append([]string{"--print-policy"}, append(args, "--", script)...)...).expect(0)
	var policy map[string]any
	if err := json.Unmarshal([]byte(printed), &policy); err != nil {
		t.Fatal(err)
	}
	policy["volumes"] = map[string]any{"secrets": map[string]any{
		"kind": "files", "sealed": map[string]string{"db/password": inEnvelope}, "mode": "0400",
	}}
	policy["containers"].([]any)[0].(map[string]any)["mounts"] = []any{map[string]any{"path": "/secrets", "volume": "secrets", "readOnly": true}}
	document, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	policyFile := write(t, "policy.json", document)
	stdout, stderr := s.run(t, state, append(ca, "--policy", policyFile, image)...).expect(0)
	contains(t, "stdout", stdout, sha256Hex(vault), sha256Hex(envelope), "-r--------")
	s.checkSecrets(t, "stderr", stderr)

	forged := coffer("seal", "vault", "--sign-key", other+".private.jwk", "--resource", "kbs:///shop/db/password")
	stdout, stderr = s.run(t, state, append(ca, "--secret-env", "P="+forged, image, "--", "echo ran")...).expect(125)
	if stdout != "" {
		t.Errorf("expected no output, got %q", stdout)
	}
	contains(t, "stderr", stderr, "env.P", "kbs:///shop/sealing/key", "signature")
}

// TestRuntimeEvents has what happens in the guest measured. A trustee whose tokens
// end soon sees it when the guest attests again.
func TestRuntimeEvents(t *testing.T) {
	s := need(t)
	t.Parallel()
	// From a registry: the port from which an image of this machine is served stands
	// in initdata, and is another one when somebody has it.
	r := s.registryFor(t)
	image := r.host() + "/public/events:v1"
	s.program(t, "", "coffer", "image", "copy", s.local(t).layout, image, "--registry-ca", r.ca).expect(0)
	for _, tee := range []string{"soft", "soft-tdx"} {
		t.Run(tee, func(t *testing.T) {
			t.Parallel()
			state := t.TempDir()
			trustee := s.startTrustee(t, state, "[token]\nlifetime = \"10s\"\n")
			value := s.newSecret("a resource behind events of " + tee)
			trustee.admin(t, "trustee", "secret", "set", "kbs:///shop/db/password", write(t, "value", []byte(value))).expect(0)
			trustee.admin(t, "guest", "measure", "--tee", tee, "--guest-image", s.guest, "--register").expect(0)
			flags := []string{"--tee", tee, "--trustee", trustee.guestURL, "--trustee-ca", trustee.ca, "--rest-api", "all", "--event-log", "--registry-ca", r.ca, image, "--", asks + `
wget -q -O - --header 'Content-Type: application/json' --post-data '{"domain":"shop","operation":"Sold","content":"a book"}' http://127.0.0.1:8006/aa/aael
sleep 12
n=0
until body /cdh/resource/shop/db/password > /dev/null || [ $n = 5 ]; do n=$((n+1)); sleep 1; done
echo "own $(body /cdh/resource/shop/db/password | sha256sum)"`}
			document, _ := s.run(t, state, append([]string{"--print-initdata"}, flags...)...).expect(0)
			inspected, _ := s.program(t, "", "coffer", "initdata", "inspect", write(t, "initdata.toml", []byte(document)), "--output", "json").expect(0)
			var id struct{ Digest string }
			if err := json.Unmarshal([]byte(inspected), &id); err != nil {
				t.Fatal(err)
			}
			trustee.admin(t, "trustee", "bind", "kbs:///shop/db", id.Digest).expect(0)
			stdout, _ := s.run(t, state, flags...).expect(0)
			contains(t, "stdout", stdout, `{"success":"true"}`, "own "+sha256Hex(value))
			verdicts, _ := trustee.admin(t, "trustee", "verdicts", "--output", "json").expect(0)
			contains(t, "verdicts", verdicts, "runtime_events", `"PullImage"`, `"StartContainer"`, `"Sold"`, "a book")
		})
	}
}
