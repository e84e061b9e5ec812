package broker

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// coreNoise is what the server calls errors or warnings although a healthy
// cluster says it all the time: it is logged at debug.
var coreNoise = []string{
	"Error trying to connect to route",           // to to a core that is down
	"Error flushing",                             // a route's or client's other end has gone
	"could not replace peer",                     // at every removal of a member
	"Plaintext passwords detected",               // secrets of this process, never stored
	"Waiting for routing to be established",      // at every start
	"has not established contact with a meta le", // likewise; the membership loop says it when it lasts
	"detected stream remapping",                  // a stream is raised
	"resetting first sequence",                   // a new replica starts behind the first message
	"Metalayer blocking snapshot",                // at every stop
	"of solicited routes will not be verified",   // pki does that, by who they are and not by where
}

// provoked is what everybody who reaches a port can make a server say, as often as
// they like: that they spoke no TLS, showed no good credential, or did what theirs does
// not allow.
var provoked = []string{
	"TLS handshake error", "TLS route handshake error", "authentication error", "Account fetch failed", "Publish Violation", "Subscription Violation",
	"Rejecting connection, cluster name", "cluster name from remote server conflicts",
}

// provokedEvery is how often one of them is logged at most.
const provokedEvery = time.Minute

// removedText is what a server says when it learns that it was removed from the
// meta group, before it turns its JetStream off.
const removedText = "JetStream being DISABLED, our server was removed from the cluster"

// witnessNoise is what a witness says on its ordered way out, besides.
var witnessNoise = append([]string{removedText}, coreNoise...)

// logger is the server's log as slog. The server's notices are details of
// ours: debug. A Fatalf does not end the process, it is handed to fatal.
type logger struct {
	log   *slog.Logger
	noise []string
	fatal func(error)
	// removed is called when the log says that the server was removed; may be nil.
	removed func()
	// refused is given what the server says of whom it turns away, as the server has it;
	// may be nil.
	refused func(format string, v []any)

	mu     sync.Mutex           // guards what follows
	said   map[string]time.Time // when the last of each that was provoked was logged
	unsaid map[string]int       // how many there were since
}

func (l *logger) Noticef(format string, v ...any) {
	l.log.Debug("nats server notice", "text", fmt.Sprintf(format, v...))
}

func (l *logger) Warnf(format string, v ...any) {
	l.loud(slog.LevelWarn, "nats server warning", fmt.Sprintf(format, v...))
}

func (l *logger) Errorf(format string, v ...any) {
	if l.refused != nil {
		l.refused(format, v)
	}
	l.loud(slog.LevelError, "nats server error", fmt.Sprintf(format, v...))
}

func (l *logger) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.log.Error("nats server is unusable", "err", text)
	l.fatal(fmt.Errorf("nats server: %s", text))
}

func (l *logger) Debugf(format string, v ...any) {
	l.log.Debug("nats server debug", "text", fmt.Sprintf(format, v...))
}

func (l *logger) Tracef(string, ...any) {}

func (l *logger) loud(level slog.Level, message, text string) {
	if l.removed != nil && text == removedText {
		l.removed()
	}
	if i := slices.IndexFunc(provoked, func(p string) bool { return strings.Contains(text, p) }); i >= 0 {
		more, say := l.provocation(provoked[i], time.Now())
		if !say {
			return
		}
		level, message = slog.LevelWarn, "somebody is refused"
		text = fmt.Sprintf("%s (%d more since the last line like this)", text, more)
	}
	for _, n := range l.noise {
		if strings.Contains(text, n) {
			level = slog.LevelDebug
			break
		}
	}
	l.log.Log(context.Background(), level, message, "err", text)
}

// provocation counts one, and says whether it is time to log it, and how many were not
// logged.
func (l *logger) provocation(what string, now time.Time) (unsaid int, say bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said == nil {
		l.said, l.unsaid = map[string]time.Time{}, map[string]int{}
	}
	if last, ok := l.said[what]; ok && now.Sub(last) < provokedEvery {
		l.unsaid[what]++
		return 0, false
	}
	unsaid = l.unsaid[what]
	l.said[what], l.unsaid[what] = now, 0
	return unsaid, true
}
