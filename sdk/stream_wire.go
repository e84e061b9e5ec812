package sdk

import (
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/subjects"
)

// What a message of a stream is; see subjects.HeaderStream.
const (
	streamItem  = "item"
	streamAlive = "alive"
	streamEnd   = "end"
)

// isOfStream reports whether a message is one of a stream. What comes before its last can
// come after it, by another connection.
func isOfStream(m *nats.Msg) bool {
	v := m.Header[subjects.HeaderStream]
	return len(v) == 1
}

// parseStream reads what a message of a stream is; false: it is of none.
func parseStream(m *nats.Msg) (what string, n uint64, ok bool) {
	what, number, found := strings.Cut(m.Header.Get(subjects.HeaderStream), " ")
	n, err := strconv.ParseUint(number, 10, 64)
	return what, n, found && err == nil
}
