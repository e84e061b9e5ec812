package broker

import (
	"context"
	"fmt"
	"log/slog"
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

// handshakeText is in what a server says of a connection that ended before TLS stood:
// everybody who reaches the port can make it say so, as often as they like.
const handshakeText = "TLS handshake error"

// handshakeEvery is how often that is logged at most.
const handshakeEvery = time.Minute

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

	mu     sync.Mutex // guards what follows
	said   time.Time  // when the last handshake that failed was logged
	unsaid int        // how many failed since
}

func (l *logger) Noticef(format string, v ...any) {
	l.log.Debug("nats server notice", "text", fmt.Sprintf(format, v...))
}

func (l *logger) Warnf(format string, v ...any) {
	l.loud(slog.LevelWarn, "nats server warning", fmt.Sprintf(format, v...))
}

func (l *logger) Errorf(format string, v ...any) {
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
	if strings.Contains(text, handshakeText) {
		more, say := l.handshake(time.Now())
		if !say {
			return
		}
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

// handshake counts a handshake that failed, and says whether it is time to log one,
// and how many were not logged.
func (l *logger) handshake(now time.Time) (unsaid int, say bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.said.IsZero() && now.Sub(l.said) < handshakeEvery {
		l.unsaid++
		return 0, false
	}
	unsaid, l.said, l.unsaid = l.unsaid, now, 0
	return unsaid, true
}
