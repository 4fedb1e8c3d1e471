package main

import (
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// pause waits for a signal that asks to end, and reaps as a first process must.
func pause([]string) error {
	c := make(chan os.Signal, 16)
	signal.Notify(c, unix.SIGINT, unix.SIGTERM, unix.SIGCHLD)
	for s := range c {
		if s != unix.SIGCHLD {
			return nil
		}
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
	return nil
}

// signals prints the signals that come. On SIGTERM it goes on for some seconds
// and ends with a code.
func signals(args []string) error {
	seconds, err := number(args, 0, 0)
	if err != nil {
		return err
	}
	code, err := number(args, 1, 0)
	if err != nil {
		return err
	}
	c := make(chan os.Signal, 16)
	signal.Notify(c, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGINT, unix.SIGQUIT)
	fmt.Println("waiting")
	for s := range c {
		number, ok := s.(unix.Signal)
		if !ok {
			continue
		}
		fmt.Println("signal", unix.SignalName(number))
		if s == unix.SIGTERM {
			<-time.After(time.Duration(seconds) * time.Second)
			fmt.Println("ending")
			return &exitError{code: code}
		}
	}
	return nil
}

// terminal prints the size of its terminal, and each new size.
func terminal([]string) error {
	c := make(chan os.Signal, 16)
	signal.Notify(c, unix.SIGWINCH)
	c <- unix.SIGWINCH
	for range c {
		w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			return err
		}
		fmt.Printf("size %dx%d\n", w.Col, w.Row)
	}
	return nil
}
