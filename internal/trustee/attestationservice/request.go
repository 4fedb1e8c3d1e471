package attestationservice

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/tee"
)

// Limits of a request.
const (
	maxReportData = 64
	maxDigest     = 64
	maxPolicyID   = 128
	maxDepth      = 64
)

// request is one evaluation, as either interface brings it.
type request struct {
	Individuals []individual
	PolicyIDs   []string
}

// individual is one piece of evidence. At most one of each pair is set; a
// pointer tells "" from what is missing.
type individual struct {
	TEE, Evidence           string
	RawRuntime, Structured  *string
	InitDigest, InitTOML    *string
	HashAlgorithm, position string
}

func invalid(field, format string, args ...any) *problem.Error {
	return problem.New(http.StatusBadRequest, problem.Serde, "%s: %s", field, fmt.Sprintf(format, args...))
}

// parse checks a request. The first CPU environment is the primary.
func (q request) parse() (evaluation.Request, *problem.Error) {
	r := evaluation.Request{AnyClass: true}
	if n := len(q.Individuals); n == 0 || n > evaluation.MaxIndividuals {
		return r, invalid("verification_requests", "expected 1 to %d, got %d", evaluation.MaxIndividuals, n)
	}
	switch len(q.PolicyIDs) {
	case 0:
	case 1:
		r.Policy = q.PolicyIDs[0]
		if e := checkID("policy_ids[0]", r.Policy); e != nil {
			return r, e
		}
	default:
		return r, invalid("policy_ids", "expected at most one, got %d: a policy is selected for each class by its id and the class, and all of them judge together", len(q.PolicyIDs))
	}
	for i, x := range q.Individuals {
		x.position = fmt.Sprintf("verification_requests[%d].", i)
		one, e := x.parse()
		if e != nil {
			return r, e
		}
		r.Devices = append(r.Devices, one)
	}
	// Devices are never of class cpu, whatever their verifier says.
	primary := 0
	for i, x := range r.Devices {
		if !isDevice(x.TEE) {
			primary = i
			break
		}
	}
	r.Primary = r.Devices[primary]
	r.Devices = append(r.Devices[:primary:primary], r.Devices[primary+1:]...)
	return r, nil
}

func isDevice(n tee.Name) bool {
	switch n {
	case tee.NVIDIA, tee.HygonDCU, tee.SampleDevice, appraisal.BlueField:
		return true
	}
	return false
}

// checkID refuses ids that no policy can have.
func checkID(field, id string) *problem.Error {
	bad := strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	})
	if id == "" || len(id) > maxPolicyID || bad {
		return invalid(field, "expected 1 to %d characters of a-z A-Z 0-9 . _ -, got %.80q", maxPolicyID, id)
	}
	return nil
}

func teeName(s string) (tee.Name, error) {
	if s == string(appraisal.BlueField) {
		return appraisal.BlueField, nil
	}
	return tee.ParseName(s)
}

func (x individual) parse() (evaluation.Individual, *problem.Error) {
	var out evaluation.Individual
	var err error
	if out.TEE, err = teeName(x.TEE); err != nil {
		return out, invalid(x.position+"tee", "expected a TEE's name, for example \"snp\", got %.40q", x.TEE)
	}
	evidence, e := decode(x.position+"evidence", x.Evidence)
	if e != nil {
		return out, e
	}
	var any1 any
	if err := strictjson.Decode(evidence, &any1, strictjson.Limits{Bytes: len(evidence) + 1, Depth: maxDepth}); err != nil {
		return out, invalid(x.position+"evidence", "expected the base64url of JSON: %v", err)
	}
	out.Evidence = evidence
	if e := x.runtime(&out); e != nil {
		return out, e
	}
	return out, x.initData(&out)
}

// runtime works out what the evidence has to carry. Without it the evidence
// would prove nothing to whoever asks now.
func (x individual) runtime(out *evaluation.Individual) *problem.Error {
	field := x.position + "runtime_data"
	switch {
	case x.RawRuntime != nil && x.Structured != nil:
		return invalid(field, "expected raw or structured, got both")
	case x.RawRuntime != nil:
		raw, e := decode(field+".raw", *x.RawRuntime)
		if e != nil {
			return e
		}
		if n := len(raw); n == 0 || n > maxReportData {
			return invalid(field+".raw", "expected the report data itself, 1 to %d bytes, got %d: hash longer data and send the digest", maxReportData, n)
		}
		out.ReportData = raw
		return nil
	case x.Structured != nil:
		doc := []byte(*x.Structured)
		canonical, claims, err := canonicalize(doc)
		if err != nil {
			return invalid(field+".structured", "%v", err)
		}
		out.Runtime = claims
		if out.ReportData, err = sum(x.HashAlgorithm, canonical); err != nil {
			return invalid(x.position+"runtime_data_hash_algorithm", "%v", err)
		}
		return nil
	}
	return invalid(field, "is missing: evidence that is bound to nothing may be anyone's; send the data that the guest hashed into its report (structured), or the report data (raw)")
}

func (x individual) initData(out *evaluation.Individual) *problem.Error {
	field := x.position + "init_data"
	switch {
	case x.InitDigest != nil && x.InitTOML != nil:
		return invalid(field, "expected a digest or TOML, got both")
	case x.InitDigest != nil:
		digest, e := decode(field+".init_data_digest", *x.InitDigest)
		if e != nil {
			return e
		}
		if n := len(digest); n == 0 || n > maxDigest {
			return invalid(field+".init_data_digest", "expected 1 to %d bytes, got %d", maxDigest, n)
		}
		out.InitData = &evaluation.InitData{Digest: digest}
	case x.InitTOML != nil:
		raw := []byte(*x.InitTOML)
		doc, err := initdata.Parse(raw)
		if err != nil {
			return invalid(field+".init_data_toml", "%v", err)
		}
		_, digest, err := initdata.Digest(raw)
		if err != nil {
			return invalid(field+".init_data_toml", "%v", err)
		}
		out.InitData = &evaluation.InitData{Digest: digest, Document: doc}
	}
	return nil
}

// decode reads unpadded base64url, in its one spelling.
func decode(field, s string) ([]byte, *problem.Error) {
	out, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") {
		return nil, invalid(field, "expected unpadded base64url")
	}
	return out, nil
}

func sum(alg string, data []byte) ([]byte, error) {
	switch alg {
	case "", "sha384":
		d := sha512.Sum384(data)
		return d[:], nil
	case "sha256":
		d := sha256.Sum256(data)
		return d[:], nil
	case "sha512":
		d := sha512.Sum512(data)
		return d[:], nil
	}
	return nil, fmt.Errorf("expected \"sha256\", \"sha384\" or \"sha512\", got %.32q", alg)
}

// restRequest is the body of POST /attestation.
type restRequest struct {
	Requests  []restIndividual `json:"verification_requests"`
	PolicyIDs []string         `json:"policy_ids"`
}

type restIndividual struct {
	TEE      string `json:"tee"`
	Evidence string `json:"evidence"`
	Runtime  *struct {
		Raw        *string         `json:"raw"`
		Structured json.RawMessage `json:"structured"`
	} `json:"runtime_data"`
	InitData *struct {
		Digest *string `json:"init_data_digest"`
		TOML   *string `json:"init_data_toml"`
	} `json:"init_data"`
	HashAlgorithm *string `json:"runtime_data_hash_algorithm"`
}

func parseREST(body []byte) (request, *problem.Error) {
	var doc restRequest
	if err := strictjson.Decode(body, &doc, strictjson.Limits{Bytes: len(body) + 1, Depth: maxDepth}); err != nil {
		return request{}, problem.New(http.StatusBadRequest, problem.Serde, "attestation request: %v", err)
	}
	q := request{PolicyIDs: doc.PolicyIDs}
	for _, r := range doc.Requests {
		x := individual{TEE: r.TEE, Evidence: r.Evidence}
		if r.Runtime != nil {
			x.RawRuntime = r.Runtime.Raw
			if s := string(r.Runtime.Structured); s != "" && s != "null" {
				x.Structured = &s
			}
		}
		if r.InitData != nil {
			x.InitDigest, x.InitTOML = r.InitData.Digest, r.InitData.TOML
		}
		if r.HashAlgorithm != nil {
			x.HashAlgorithm = *r.HashAlgorithm
		}
		q.Individuals = append(q.Individuals, x)
	}
	return q, nil
}
