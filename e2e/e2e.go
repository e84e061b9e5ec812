// Package e2e runs whole clusters: the real binary, real processes, real
// faults. Its tests are the promises of the README. `go test ./e2e` is a smoke
// test; `go test ./e2e -long` runs every fault.
package e2e
