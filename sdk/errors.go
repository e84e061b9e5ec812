package sdk

import "github.com/kbroker/kbroker"

// Error is what crosses processes: code, message, hint, executed.
type Error = kbroker.Error

// Codes of errors, for Errorf and errors.Is. An application may use codes of
// its own: lower-case letters, digits and underscores.
const (
	Invalid          = kbroker.Invalid
	NotFound         = kbroker.NotFound
	Refused          = kbroker.Refused
	Conflict         = kbroker.Conflict
	Overloaded       = kbroker.Overloaded
	Unavailable      = kbroker.Unavailable
	DeadlineExceeded = kbroker.DeadlineExceeded
	Failed           = kbroker.Failed
	Internal         = kbroker.Internal
	Moved            = kbroker.Moved
	Expired          = kbroker.Expired
	AnswerLost       = kbroker.AnswerLost
	Deadlock         = kbroker.Deadlock
)

// Errorf builds the error that a handler answers with.
func Errorf(code kbroker.Code, format string, args ...any) *Error {
	return kbroker.Errorf(code, format, args...)
}
