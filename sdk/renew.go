package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// freshLook is how often it is looked at whether the credential is to be renewed,
	// where nothing is known of its end.
	freshLook = 2 * time.Second
	// renewPart of a credential's life passes before the process renews it.
	renewPart = 0.5
	// renewWithin bounds one question to the cores.
	renewWithin = 2 * time.Second
)

// refresh renews the credential of the process when it is time, and takes the transport
// to a connection that was made with it: the server cuts the one before when its
// credential ends. It returns when to look again.
func (m *mover) refresh(ctx context.Context) time.Duration {
	l := m.t.link.Load()
	ends := l.ends()
	if ends.IsZero() {
		return freshLook
	}
	own, err := m.network.credential()
	if due := own.Due(renewPart); err == nil && !due.IsZero() && !time.Now().Before(due) {
		own, err = m.renew(ctx, l, own)
	}
	_, until := own.Holds()
	if err == nil && until.After(ends) {
		servers := append([]string{l.conn.ConnectedUrl()}, m.network.elsewhere(l)...)
		err = m.move(ctx, l, slices.DeleteFunc(servers, func(s string) bool { return s == "" }), true)
	}
	switch {
	case ctx.Err() != nil:
		return freshLook
	case err != nil:
		m.t.log.Warn("the credential of this process is not renewed; trying again", "ends", ends, "err", err)
		return min(freshLook, max(time.Until(ends)/8, moveAgain)) + rand.N(moveAgain)
	case until.After(ends):
		return freshLook
	}
	// All that were started at once need not come back at once.
	wait := time.Until(own.Due(renewPart))
	return max(freshLook/4, wait+rand.N(max(time.Millisecond, wait/10)))
}

// renew has the credential signed again by any one core, and keeps it where the
// connections of this process take it from.
func (m *mover) renew(ctx context.Context, l *link, own credential.Credential) (credential.Credential, error) {
	body, err := json.Marshal(kbroker.RenewRequest{Credential: own.JWT()})
	if err != nil {
		return own, fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, renewWithin)
	defer cancel()
	answer, err := l.conn.RequestWithContext(ctx, subjects.Renew(own.Key()), body)
	if err != nil {
		return own, fmt.Errorf("ask the cores: %w", err)
	}
	if answer.Header.Get(subjects.HeaderCode) != "" {
		e := &kbroker.Error{}
		if err := json.Unmarshal(answer.Data, e); err != nil {
			return own, fmt.Errorf("unreadable refusal: %w", err)
		}
		return own, e
	}
	var reply kbroker.SignReply
	if err := json.Unmarshal(answer.Data, &reply); err != nil {
		return own, fmt.Errorf("unreadable answer: %w", err)
	}
	own = own.Signed(reply.Credential)
	return own, own.Save(m.network.target.CredentialFile)
}
