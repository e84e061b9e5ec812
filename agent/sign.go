package agent

import (
	"context"
	"errors"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// signAgain is the pause after a core did not sign, doubled up to signAgainCap: it
	// may not know the placement yet.
	signAgain    = 20 * time.Millisecond
	signAgainCap = time.Second
	// signLook is how often it is looked at whether a credential is to be renewed.
	signLook = 5 * time.Second
)

// renewPart of a credential's life passes before the agent renews it: the process does
// so earlier, by itself.
const renewPart = 2. / 3

// signs has the credential of a running incarnation signed, by any one core, and
// again in time, until ctx ends.
func (a *Agent) signs(ctx context.Context, r record) {
	path := credsPath(a.cfg.Dir.home(keyOf(r.Placement)), r.Incarnation)
	pause, told := signAgain, false
	var own *credential.Kept
	for {
		var err error
		if own == nil {
			own, err = credential.Keep(path)
		}
		if err == nil {
			err = a.sign(ctx, r, own)
		}
		wait := signLook
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, kbroker.Refused):
			a.log.Debug("an instance that is to leave gets no credential", "instance", r.Placement.Instance, "err", err)
		case err != nil:
			if !told && pause == signAgainCap {
				told = true
				a.log.Warn("a credential is not signed, or not written; trying again", "instance", r.Placement.Instance, "err", err)
			}
			wait, pause = pause, min(2*pause, signAgainCap)
		default:
			pause, told = signAgain, false
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// sign has a credential signed if it is time, and written if that is left to do.
func (a *Agent) sign(ctx context.Context, r record, own *credential.Kept) error {
	held := own.Look()
	if !held.IsSigned() || held.Life() > 0 && held.Left(renewPart) <= 0 {
		signed, err := a.signed(ctx, r, held.Credential)
		if err == nil {
			err = own.Take(signed)
		}
		if err != nil && held.IsSigned() {
			a.reporter.signed(keyOf(r.Placement), r.Incarnation, held.JWT())
		}
		if err != nil {
			return err
		}
	}
	a.reporter.signed(keyOf(r.Placement), r.Incarnation, own.Now().JWT())
	written, err := own.Write()
	if written {
		a.settler.stir()
	}
	return err
}

// signed asks a core once.
func (a *Agent) signed(ctx context.Context, r record, own credential.Credential) (string, error) {
	ask := kbroker.SignRequest{
		Tenant: r.Placement.Tenant, Instance: r.Placement.Instance, Epoch: r.Placement.Epoch, Incarnation: r.Incarnation, Key: own.Key(),
	}
	var err error
	if ask.Proof, err = own.Prove(ask.Claim(a.cfg.Host)); err != nil {
		return "", err
	}
	var reply kbroker.SignReply
	err = request(ctx, a.cfg.Conn, subjects.Sign(a.cfg.Host), ask, &reply)
	return reply.Credential, err
}
