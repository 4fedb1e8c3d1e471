// Package openpgp verifies signed messages of OpenPGP (RFC 4880, RFC 6637, RFC
// 9580): as much of it as simple signing of images takes, and no more.
//
// [ParseKeyring] reads public keys, armored or binary, and settles once what
// each may do: a self-signature has to verify, a subkey needs its binding and,
// to sign, its own signature of the primary key. [Keyring.Verify] opens one
// message, a literal with one signature of version 4, maybe compressed, and
// returns what was signed.
//
// Keys are RSA, ECDSA on the NIST curves, and Ed25519 in its older and newer
// form, all of version 4. Digests are SHA-256, SHA-384 and SHA-512; a signature
// by a weaker one does not count, whatever it is for. The keyring is its owner's
// and trusted to be what was meant; messages are hostile. Everything fails
// closed: a key that was ever revoked, by whatever means and for whatever
// reason, signs no more; an expired one neither, not even for what it signed
// when it was valid.
package openpgp
