package sdk

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Status of a message with which the broker says that nobody is there.
const (
	headerStatus = "Status"
	noResponders = "503"
)

// maxHeaderText bounds the error text in the NATS micro header; the body has
// all of it.
const maxHeaderText = 256

// encode makes a payload: JSON, or the bytes as they are.
func encode[T any](v T) ([]byte, error) {
	switch p := any(&v).(type) {
	case *[]byte:
		return *p, nil
	case *any:
		if b, ok := (*p).([]byte); ok {
			return b, nil
		}
	}
	return json.Marshal(v)
}

// decode reads a payload: JSON, or the bytes as they are. An empty payload is
// the zero value.
func decode[T any](data []byte) (T, error) {
	var v T
	if b, ok := any(&v).(*[]byte); ok {
		*b = data
		return v, nil
	}
	if len(data) == 0 {
		return v, nil
	}
	var decoded T // not v: this one must live on the heap
	err := json.Unmarshal(data, &decoded)
	return decoded, err
}

// timeoutHeader is how long the caller still waits: whole milliseconds,
// rounded up so that a moment is not nothing.
func timeoutHeader(d time.Duration) string {
	return strconv.FormatInt(max(int64((d+time.Millisecond-1)/time.Millisecond), 0), 10)
}

// parseTimeout reads HeaderTimeout. A request without it, or with one that is
// not a number, comes from a client that knows no deadlines.
func parseTimeout(h nats.Header) (time.Duration, bool) {
	ms, err := strconv.ParseInt(h.Get(subjects.HeaderTimeout), 10, 64)
	if err != nil {
		return 0, false
	}
	return time.Duration(min(ms, int64(maxTimeout/time.Millisecond))) * time.Millisecond, true
}

// maxTimeout bounds the deadline that a request can bring along.
const maxTimeout = 24 * time.Hour

// errorReply is the reply that carries e to a caller: for kbroker's SDKs, for
// those of NATS micro, and for people who look at it.
func errorReply(to string, base nats.Header, e *kbroker.Error) *nats.Msg {
	body, err := json.Marshal(e)
	if err != nil {
		panic(fmt.Sprintf("sdk: an error does not marshal: %v", err)) // strings only
	}
	h := nats.Header{
		subjects.HeaderCode:           {string(e.Code)},
		subjects.HeaderMicroError:     {headerText(e.Message)},
		subjects.HeaderMicroErrorCode: {microCode(e.Code)},
	}
	for k, v := range base {
		h[k] = v
	}
	return &nats.Msg{Subject: to, Header: h, Data: body}
}

func headerText(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxHeaderText {
		s = strings.ToValidUTF8(s[:maxHeaderText], "")
	}
	return s
}

// microCode maps a code to the numbers that NATS micro services use.
func microCode(c kbroker.Code) string {
	switch c {
	case kbroker.Invalid:
		return "400"
	case kbroker.Refused:
		return "403"
	case kbroker.NotFound:
		return "404"
	case kbroker.Conflict, kbroker.Deadlock:
		return "409"
	case kbroker.Overloaded, kbroker.Unavailable, kbroker.NoLeader, kbroker.Moved:
		return "503"
	case kbroker.DeadlineExceeded:
		return "504"
	}
	return "500"
}

// answerOf reads what a reply says: nil for a result, otherwise the error. The
// broker's "no responders" is (nil, true).
func answerOf(m *nats.Msg) (e *kbroker.Error, nobody bool) {
	if len(m.Header) == 0 {
		return nil, false
	}
	if len(m.Data) == 0 && m.Header.Get(headerStatus) == noResponders {
		return nil, true
	}
	if code := m.Header.Get(subjects.HeaderCode); code != "" {
		e = &kbroker.Error{}
		if err := json.Unmarshal(m.Data, e); err != nil || e.Message == "" {
			e = &kbroker.Error{Message: "answered with code " + code + " and no message"}
		}
		e.Code = kbroker.Code(code)
		if e.Executed != kbroker.ExecutedYes && e.Executed != kbroker.ExecutedNo {
			e.Executed = kbroker.ExecutedUnknown
		}
		return e, false
	}
	if _, ok := m.Header[subjects.HeaderMicroErrorCode]; ok {
		return microError(m), false
	}
	return nil, false
}

// microError is the error of a NATS micro service that is not ours. Whether its
// handler ran is not said: it may have.
func microError(m *nats.Msg) *kbroker.Error {
	e := kbroker.Errorf(kbroker.Failed, "%s", m.Header.Get(subjects.HeaderMicroError))
	number := m.Header.Get(subjects.HeaderMicroErrorCode)
	if e.Message == "" {
		e.Message = "answered with error " + number
	}
	switch number {
	case "400":
		e.Code = kbroker.Invalid
	case "403":
		e.Code = kbroker.Refused
	case "404":
		e.Code = kbroker.NotFound
	case "409":
		e.Code = kbroker.Conflict
	}
	e.Executed = kbroker.ExecutedUnknown
	return e
}
