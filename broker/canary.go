package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/subjects"
)

// The canary is the broker's health: a compare-and-set write to the control
// stream at every tick. Stream info says "healthy" of streams that take no
// write.
const (
	canaryEvery   = time.Second
	canaryTimeout = 500 * time.Millisecond
	// writableFor is how long one success counts.
	writableFor = 3 * time.Second
)

// canary writes one key of the control store.
type canary struct {
	conn    *nats.Conn
	subject string // of our key
	last    uint64 // its sequence, which the next write expects; 0: none
	known   bool   // last is what the last answer said
}

// run writes until ctx ends; alive is called with the time at which a write
// that was acknowledged had been sent.
func (c *canary) run(ctx context.Context, alive func(sent time.Time)) {
	tick := time.NewTicker(canaryEvery)
	defer tick.Stop()
	for {
		sent := time.Now()
		if err := c.beat(ctx, sent); err == nil {
			alive(sent)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// beat makes one write. An error says nothing but that this beat was not
// acknowledged: the stream may not exist yet, or have no leader. The key is
// read again after every error, since its outcome may be unknown.
func (c *canary) beat(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, canaryTimeout)
	defer cancel()
	if !c.known {
		if err := c.read(ctx); err != nil {
			return err
		}
	}
	m := nats.NewMsg(c.subject)
	m.Header.Set(nats.ExpectedLastSubjSeqHdr, strconv.FormatUint(c.last, 10))
	m.Data = strconv.AppendQuote(nil, now.UTC().Format(time.RFC3339))
	reply, err := c.conn.RequestMsgWithContext(ctx, m)
	c.known = false
	if err != nil {
		return fmt.Errorf("write canary: %w", err)
	}
	var ack server.JSPubAckResponse
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return fmt.Errorf("write canary: %w", err)
	}
	if ack.Error != nil {
		return fmt.Errorf("write canary: %w", ack.Error)
	}
	if ack.PubAck == nil || ack.Stream != subjects.ControlStream {
		return errors.New("write canary: the control stream did not answer")
	}
	c.last, c.known = ack.Sequence, true
	return nil
}

// read asks the stream's leader for the sequence of our key.
func (c *canary) read(ctx context.Context) error {
	body, err := json.Marshal(server.JSApiMsgGetRequest{LastFor: c.subject})
	if err != nil {
		return fmt.Errorf("read canary: %w", err)
	}
	var r server.JSApiMsgGetResponse
	if err := ask(ctx, c.conn, fmt.Sprintf(server.JSApiMsgGetT, subjects.ControlStream), body, &r); err != nil {
		return fmt.Errorf("read canary: %w", err)
	}
	switch {
	case r.Error != nil && r.Error.ErrCode == uint16(server.JSNoMessageFoundErr):
		c.last = 0
	case r.Error != nil:
		return fmt.Errorf("read canary: %w", r.Error)
	case r.Message == nil:
		return errors.New("read canary: empty answer")
	default:
		c.last = r.Message.Sequence
	}
	c.known = true
	return nil
}

// While a server takes over an account (Revoke), JetStream's API has no responders on it
// for some milliseconds: who asks, asks again after unansweredPause, for at most
// unansweredFor.
const (
	unansweredPause = 5 * time.Millisecond
	unansweredFor   = 250 * time.Millisecond
)

// ask makes one request of the JetStream or the system API.
func ask(ctx context.Context, conn *nats.Conn, subject string, body []byte, out any) error {
	for last := time.Now().Add(unansweredFor); ; {
		reply, err := conn.RequestWithContext(ctx, subject, body)
		if err == nil {
			return json.Unmarshal(reply.Data, out)
		}
		if !errors.Is(err, nats.ErrNoResponders) || !time.Now().Before(last) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(unansweredPause):
		}
	}
}
