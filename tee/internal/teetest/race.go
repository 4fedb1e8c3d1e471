//go:build race

package teetest

// Under the race detector the arithmetic of signatures is many times slower,
// and the bits of one vector are no concern of it.
const stride = 31
