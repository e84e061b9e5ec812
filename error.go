package kbroker

import (
	"errors"
	"fmt"
)

// Code classifies an error. Codes are protocol: they are added, never renamed.
// A Code is itself an error, so that errors.Is(err, kbroker.NotFound) works on
// both sides of the wire. Applications may use codes of their own.
type Code string

const (
	// Invalid: the request can never succeed as it is.
	Invalid Code = "invalid"
	// NotFound: the thing named does not exist.
	NotFound Code = "not_found"
	// Refused: understood, but not allowed in this state (a second agent on a
	// data directory, a plan made from an old view).
	Refused Code = "refused"
	// Conflict: another writer was first; read again and retry.
	Conflict Code = "conflict"
	// Overloaded: a named bound is reached; another instance may have room.
	Overloaded Code = "overloaded"
	// Unavailable: nobody answered in time, or nobody is there.
	Unavailable Code = "unavailable"
	// NoLeader: the cluster answers but has no leader to take a write.
	NoLeader Code = "no_leader"
	// DeadlineExceeded: the caller's deadline passed.
	DeadlineExceeded Code = "deadline_exceeded"
	// Failed: it ran and did not succeed (a rollout, a build).
	Failed Code = "failed"
	// Moved: another owner serves the object now; the same call finds it there.
	Moved Code = "moved"
	// Expired: the call is too old to tell whether it has taken effect.
	Expired Code = "expired"
	// AnswerLost: the call has taken effect before, and what it answered then was too
	// large to be kept.
	AnswerLost Code = "answer_lost"
	// Deadlock: the call waits for an object that waits for the call.
	Deadlock Code = "deadlock"
	// Internal: the other side panicked or broke an invariant.
	Internal Code = "internal"
)

// Error makes a code an error that matches every Error of that code.
func (c Code) Error() string { return string(c) }

// Executed says whether a failed call may have had its effect.
type Executed string

const (
	// ExecutedYes: the handler ran to its end; its answer is the error.
	ExecutedYes Executed = "yes"
	// ExecutedNo: no attempt of the call reached a handler.
	ExecutedNo Executed = "no"
	// ExecutedUnknown: at least one attempt ended without an answer.
	ExecutedUnknown Executed = "unknown"
)

// Error is the one error type that crosses processes. Message says what is
// wrong, Hint what to do about it (may be empty).
type Error struct {
	Code     Code     `json:"code"`
	Message  string   `json:"message"`
	Hint     string   `json:"hint,omitempty"`
	Executed Executed `json:"executed,omitempty"`
}

// Error is the message alone: the code and the hint are for programs and for
// the CLI, which prints them on their own.
func (e *Error) Error() string { return e.Message }

// Is makes errors.Is(err, kbroker.NotFound) true for an Error of that code.
func (e *Error) Is(target error) bool {
	c, ok := target.(Code)
	return ok && c == e.Code
}

// Errorf builds an Error of the given code.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of e that carries the hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// AsError finds the Error in err's chain, or wraps err as Internal, so that
// every failure can be sent and printed in one form. nil stays nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if c, ok := errors.AsType[Code](err); ok {
		return &Error{Code: c, Message: err.Error()}
	}
	return &Error{Code: Internal, Message: err.Error()}
}
