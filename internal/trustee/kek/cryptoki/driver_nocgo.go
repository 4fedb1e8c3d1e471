//go:build !cgo

package cryptoki

func loadDriver(string) (module, error) { return nil, ErrNoCgo }
