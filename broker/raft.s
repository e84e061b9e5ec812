// Empty: a file of assembly lets this package declare functions without a
// body, which are bound by go:linkname (raft.go).
