// App is what the containers of the tests run, beside BusyBox: servers, and
// probes of what a container may do. Each subcommand does one thing and prints
// what came of it; a test compares that.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
)

// errUsage is the answer to arguments that no subcommand takes.
var errUsage = errors.New("usage: app pause | serve [NAME=ADDRESS...] | get URL | dial NETWORK ADDRESS TEXT | listen PATH | eat MIB | fork N | signals [SECONDS] [CODE] | call NAME | watch DIRECTORY | flood BYTES | terminal | totals FILE")

func main() {
	err := run(os.Args[1:])
	if exit := (*exitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.code) //nolint:forbidigo // this is main
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

// exitError ends the program with a code and no message.
type exitError struct{ code int }

func (e *exitError) Error() string { return "exit code " + strconv.Itoa(e.code) }

func run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	commands := map[string]func([]string) error{
		"pause": pause, "serve": serve, "get": get, "dial": dial, "listen": listen, "eat": eat, "fork": fork, "signals": signals,
		"call": call, "watch": watch, "flood": flood, "terminal": terminal, "totals": totals,
	}
	f, ok := commands[args[0]]
	if !ok {
		return errUsage
	}
	return f(args[1:])
}

// number reads the n-th argument, or takes a default.
func number(args []string, n, otherwise int) (int, error) {
	if n >= len(args) {
		return otherwise, nil
	}
	return strconv.Atoi(args[n])
}

// eat uses memory and keeps it, MiB by MiB.
func eat(args []string) error {
	most, err := number(args, 0, 1<<20)
	if err != nil {
		return err
	}
	var kept [][]byte
	for n := range most {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = byte(n + i)
		}
		kept = append(kept, b)
	}
	fmt.Println("has", len(kept), "MiB")
	return pause(nil)
}

// fork starts processes that wait, and says how many it could start.
func fork(args []string) error {
	most, err := number(args, 0, 1)
	if err != nil {
		return err
	}
	var children []*exec.Cmd
	defer func() {
		for _, c := range children {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()
	for range most {
		c := exec.CommandContext(context.Background(), "/bin/sleep", "600")
		if err := c.Start(); err != nil {
			fmt.Println("refused after", len(children), err)
			return nil
		}
		children = append(children, c)
	}
	fmt.Println("started", len(children))
	return nil
}

// flood prints many bytes in lines of 16: each is its own offset, so that who reads
// them can tell which are missing. Four lines are written at once.
func flood(args []string) error {
	most, err := number(args, 0, 1<<20)
	if err != nil {
		return err
	}
	const line = 16
	for n := 0; n < most; n += 4 * line {
		text := fmt.Sprintf("%015d\n%015d\n%015d\n%015d\n", n, n+line, n+2*line, n+3*line)
		if _, err := os.Stdout.WriteString(text[:min(len(text), most-n)]); err != nil {
			return err
		}
	}
	return nil
}
