//go:build unix && !linux

package agent

import "os/exec"

func boundToThread(*exec.Cmd) (leave func()) { return func() {} }
