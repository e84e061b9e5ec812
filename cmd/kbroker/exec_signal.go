package main

import (
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
)

// signals are those of Linux, whatever this command runs on.
var signals = []string{
	"SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1", "SIGSEGV", "SIGUSR2", "SIGPIPE",
	"SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM",
	"SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS",
}

// signalName is a signal's whole name. Numbers are refused: they are not the same on all
// architectures.
func signalName(s string) (string, error) {
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if !slices.Contains(signals, name) {
		return "", kbroker.Errorf(kbroker.Invalid, "%q is not the name of a signal", s).WithHint("names such as HUP or SIGHUP, no numbers")
	}
	return name, nil
}
