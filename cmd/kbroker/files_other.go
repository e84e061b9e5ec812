//go:build !linux

package main

// keepFiles is for agents, which run on Linux alone.
func keepFiles() error { return needLinux() }
