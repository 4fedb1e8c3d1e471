package main

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// totals opens a table that its owner encrypted (AES-GCM, the nonce first, the key
// in hexadecimal in DATA_KEY), adds up the second column for each value of the
// first, and prints the sums in order.
func totals(args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	key, err := hex.DecodeString(os.Getenv("DATA_KEY"))
	if err != nil {
		return errors.New("DATA_KEY is no key in hexadecimal")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	open, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	sealed, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	if len(sealed) < open.NonceSize() {
		return fmt.Errorf("%s is too short", args[0])
	}
	text, err := open.Open(nil, sealed[:open.NonceSize()], sealed[open.NonceSize():], nil)
	if err != nil {
		return err
	}
	sums := map[string]int{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Scan() // the columns' names
	for lines.Scan() {
		name, amount, _ := strings.Cut(lines.Text(), ",")
		n, err := strconv.Atoi(amount)
		if err != nil {
			return err
		}
		sums[name] += n
	}
	if err := lines.Err(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		fmt.Println(name, sums[name])
	}
	return nil
}
