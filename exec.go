package kbroker

import (
	"regexp"
	"strings"
)

const (
	// MaxExecArgs bounds the arguments of a command that is run in an instance,
	// in bytes of all.
	MaxExecArgs = 64 << 10
	// MaxExecData bounds the data of a frame, ExecWindow how many frames are
	// under way before the other side has taken the first of them.
	MaxExecData = 32 << 10
	ExecWindow  = 32

	// Codes of a command that was not started, as shells have them.
	ExecNotRunnable = 126
	ExecNotFound    = 127
	// ExecSignalled and its number is the code of one that a signal ended.
	ExecSignalled = 128
)

// ExecRequest asks a core to have a command run inside an instance: in its bounds, as its
// user, with its environment. It is not idempotent: nobody sends it twice.
type ExecRequest struct {
	Instance InstanceID `json:"instance"`
	Command  []string   `json:"command"`
	// Answers is the inbox that the frames of the session go to; of who asks.
	Answers string        `json:"answers"`
	TTY     *TerminalSize `json:"tty,omitempty"` // nil: pipes
	Term    string        `json:"term,omitempty"`
}

// Check refuses what cannot be run. Errors: Invalid.
func (r ExecRequest) Check() error {
	size := len(r.Term)
	for _, a := range r.Command {
		size += len(a) + 1
		if strings.ContainsRune(a, 0) {
			return Errorf(Invalid, "an argument of the command has a zero byte")
		}
	}
	switch {
	case len(r.Command) == 0 || r.Command[0] == "":
		return Errorf(Invalid, "no command to run").WithHint("kbroker exec INSTANCE -- COMMAND")
	case size > MaxExecArgs:
		return Errorf(Invalid, "the command has %d bytes of arguments, at most %d may be", size, MaxExecArgs)
	case strings.ContainsAny(r.Term, "\x00\n="):
		return Errorf(Invalid, "%q is no kind of terminal", r.Term)
	}
	return nil
}

// TerminalSize is that of a terminal, in characters.
type TerminalSize struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// ExecReply names a session. Frames to it go to the agent of the host; who knows its name
// may speak in it, and nobody else knows it.
type ExecReply struct {
	Host    HostID `json:"host"`
	Session string `json:"session"`
	// Exit is of a command that was not started; there is no session then.
	Exit *ExecExit `json:"exit,omitempty"`
}

// ExecExit is how a command ended.
type ExecExit struct {
	Code    int    `json:"code"` // of a signal: ExecSignalled and its number
	Message string `json:"message,omitempty"`
}

// ExecStream is one of a command's three.
type ExecStream string

const (
	ExecStdin  ExecStream = "stdin"
	ExecStdout ExecStream = "stdout"
	ExecStderr ExecStream = "stderr"
)

// ExecFrame is a message of a session, in either direction. Those with content are
// numbered from 1: they are sent again until they were got, and not sent before there is
// room. Each says how far its sender is, and what holds on its side.
type ExecFrame struct {
	Session string `json:"session"`
	Number  uint64 `json:"number,omitempty"` // 0: it has no content
	// Got is the last frame of the other side that came in order, Taken the last of which
	// the content was passed on: ExecWindow more may be sent.
	Got   uint64 `json:"got"`
	Taken uint64 `json:"taken"`

	// The content: data of a stream, its end, or the end of the command.
	Stream ExecStream `json:"stream,omitempty"`
	Data   []byte     `json:"data,omitempty"`
	End    bool       `json:"end,omitempty"`
	Exit   *ExecExit  `json:"exit,omitempty"`

	// What holds on the side of who asked: the size of the terminal, how often it was
	// interrupted, and that it has gone.
	Size       *TerminalSize `json:"size,omitempty"`
	Interrupts int           `json:"interrupts,omitempty"`
	Over       bool          `json:"over,omitempty"`
}

// SignalRequest asks a core to have an instance signalled. It is not idempotent.
type SignalRequest struct {
	Instance InstanceID `json:"instance"`
	Signal   string     `json:"signal"`        // as SIGHUP
	All      bool       `json:"all,omitempty"` // all its processes, not the main one alone
}

// signalForm is what a signal is called.
var signalForm = regexp.MustCompile(`^SIG[A-Z0-9]{2,10}$`)

// Check refuses what is no name of a signal. Whether a host knows it is for its agent to
// say. Errors: Invalid.
func (r SignalRequest) Check() error {
	if !signalForm.MatchString(r.Signal) {
		return Errorf(Invalid, "%q is not the name of a signal", r.Signal).WithHint("such as SIGHUP")
	}
	return nil
}

// SignalReply says how many processes were signalled.
type SignalReply struct {
	Host      HostID `json:"host"`
	Processes int    `json:"processes"`
}
