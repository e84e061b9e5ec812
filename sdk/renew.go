package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// renewPart of a credential's life passes before the process renews it, and up to
	// renewSpread more by chance: all that were started at once need not come back at
	// once.
	renewPart   = 0.5
	renewSpread = 0.05
	// renewWithin bounds one question to the cores.
	renewWithin = 2 * time.Second
	// In lookPart of a credential's life it is looked at whether somebody else has
	// renewed it, lookMin to lookMax.
	lookPart = 8
	lookMin  = 250 * time.Millisecond
	lookMax  = time.Minute
	// againPart of what is left of it is the pause after a renewal that failed, moveAgain
	// to lookMax.
	againPart = 16
)

// renews has the credential of the process renewed when it is time, and the mover know of
// each that holds for longer than the connection's, whoever had it signed.
func (m *mover) renews(ctx context.Context) {
	own, of, part := m.network.own, "", renewPart
	look := time.NewTimer(lookMin)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		held := own.Look()
		if held.JWT() != of {
			of, part = held.JWT(), renewPart+rand.Float64()*renewSpread
		}
		var err error
		l := m.t.link.Load()
		if since, _ := l.state(); !since.IsZero() && held.Life() > 0 && held.Left(part) <= 0 {
			err = renew(ctx, l.conn, own)
		}
		if m.isOutdated(m.t.link.Load()) {
			stir(m.aged)
		}
		if err == nil {
			err = own.Save() // the mover does not wait for a disk
		}
		held = own.Now()
		wait := lookIn(held, part)
		if err != nil && ctx.Err() == nil {
			wait = askAgain(held)
			m.t.log.Warn("the credential of this process is not renewed, or not written; trying again", "left", held.Left(1), "err", err)
		}
		look.Reset(wait)
	}
}

// isOutdated: there is a credential that holds for longer than that with which a link was
// made.
func (m *mover) isOutdated(l *link) bool {
	return m.network.own != nil && l.held().IsSigned() && m.network.own.Now().JWT() != l.held().JWT()
}

// lookIn is the time until a credential is looked at again, which is renewed when a part
// of its life has passed.
func lookIn(held credential.Held, part float64) time.Duration {
	switch {
	case !held.IsSigned():
		return lookMin
	case held.Life() == 0:
		return lookMax
	}
	return min(max(lookMin, min(held.Left(part), held.Life()/lookPart)), lookMax)
}

// askAgain is the pause after a renewal that failed.
func askAgain(held credential.Held) time.Duration {
	return min(max(moveAgain, held.Left(1)/againPart), lookMax) + rand.N(moveAgain)
}

// renew has the credential signed again by any one core.
func renew(ctx context.Context, conn *nats.Conn, own *credential.Kept) error {
	body, err := json.Marshal(kbroker.RenewRequest{Credential: own.Now().JWT()})
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, renewWithin)
	defer cancel()
	answer, err := conn.RequestWithContext(ctx, subjects.Renew(own.Now().Key()), body)
	if err != nil {
		return fmt.Errorf("ask the cores: %w", err)
	}
	if answer.Header.Get(subjects.HeaderCode) != "" {
		e := &kbroker.Error{}
		if err := json.Unmarshal(answer.Data, e); err != nil {
			return fmt.Errorf("unreadable refusal: %w", err)
		}
		return e
	}
	var reply kbroker.SignReply
	if err := json.Unmarshal(answer.Data, &reply); err != nil {
		return fmt.Errorf("unreadable answer: %w", err)
	}
	return own.Take(reply.Credential)
}
