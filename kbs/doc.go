// Package kbs speaks the key broker protocol of Confidential Containers
// ("RCAR": request, challenge, attestation, response), version 0.4.0, on both
// sides: the wire documents and their decoders, the digest that binds
// evidence to a handshake, the JWE that carries a resource, resource URIs,
// and the guest's [Client].
//
// Decoders are strict about what could be read in two ways (size, nesting,
// duplicate members, member names that differ in case, types) and tolerant
// about members they do not know, because the protocol grows by adding
// members without a new version.
//
// A server reads [ParseRequest], answers a [Challenge], reads
// [ParseAttestation] with the version the request named, computes
// [Attestation.Digest] and gives it to a verifier as expected report data,
// and at last wraps a resource with [EncryptResponse].
package kbs

// Limits of the wire documents, in bytes. A longer document is refused before
// it is decoded.
const (
	// MaxRequestBytes bounds the body of POST /auth.
	MaxRequestBytes = 64 << 10
	// MaxChallengeBytes bounds the answer to POST /auth. (IBM Secure
	// Execution puts a whole document into the nonce.)
	MaxChallengeBytes = 256 << 10
	// MaxAttestationBytes bounds the body of POST /attest. It holds initdata
	// and an event log.
	MaxAttestationBytes = 8 << 20
	// MaxTokenBytes bounds an attestation token. Eight GPUs with verbose
	// claims make one of about 170 KiB.
	MaxTokenBytes = 512 << 10
	// MaxResourceBytes bounds the plaintext of a resource.
	MaxResourceBytes = 1 << 20
	// MaxResponseBytes bounds an encrypted resource on the wire: base64 of
	// MaxResourceBytes and the other members of the JWE.
	MaxResponseBytes = MaxResourceBytes/3*4 + 16<<10
	// MaxErrorBytes bounds the body of an error.
	MaxErrorBytes = 64 << 10

	// maxNonceBytes bounds the challenge's nonce.
	maxNonceBytes = 128 << 10
	// maxDepth bounds the nesting of every wire document.
	maxDepth = 32
	// maxHashAlgorithms bounds the client's list.
	maxHashAlgorithms = 16
	// maxSelectorBytes bounds the name of an attestation policy.
	maxSelectorBytes = 256
	// maxCookieBytes bounds the session's cookie: brokers without sessions of
	// their own keep their state in it.
	maxCookieBytes = 4 << 10
)

// The cookie and the paths of the handshake, below the server's URL.
const (
	// SessionCookie names the handshake's session.
	SessionCookie = "kbs-session-id"
	// PathPrefix begins every path of the protocol.
	PathPrefix = "/kbs/v0"
	// AuthPath answers a [Request] with a [Challenge].
	AuthPath = PathPrefix + "/auth"
	// AttestPath answers an [Attestation] with a [TokenResponse].
	AttestPath = PathPrefix + "/attest"
)
