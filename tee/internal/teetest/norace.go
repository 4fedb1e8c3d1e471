//go:build !race

package teetest

const stride = 1
