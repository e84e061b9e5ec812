package main

import (
	"context"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/credential"
)

const (
	// creditRenew of the life of a program's credential passes before `run` has it
	// signed again: one that uses the SDK does so earlier, by itself.
	creditRenew = 2. / 3
	// In creditLook of its life, creditLookMin to creditLookMax, it is looked at whether
	// it is time, and asked again after a failure.
	creditLook    = 16
	creditLookMin = 100 * time.Millisecond
	creditLookMax = 10 * time.Second
	// creditWithin bounds one question for it.
	creditWithin = 5 * time.Second
)

// credit has a credential signed for a development instance, and writes it.
func credit(ctx context.Context, api *client.Client, i kbroker.InstanceFile) (*credential.Kept, error) {
	fresh, err := credential.New()
	if err == nil {
		err = fresh.Save(i.Credential)
	}
	if err != nil {
		return nil, err
	}
	own, err := credential.Keep(i.Credential)
	if err != nil {
		return nil, err
	}
	if err := signStart(ctx, api, i, own); err != nil {
		return nil, err
	}
	return own, own.Save()
}

// signStart has the key of a development instance signed for, once more.
func signStart(ctx context.Context, api *client.Client, i kbroker.InstanceFile, own *credential.Kept) error {
	signed, err := api.Develop(ctx, kbroker.DevelopRequest{App: i.App, Service: i.Service, Instance: i.Instance, Incarnation: i.Incarnation}, own.Now())
	if err != nil {
		return err
	}
	return own.Take(signed)
}

// renews has the credential of a program that runs hold, until ctx ends: nobody has its
// key then, and what was signed last ends by itself.
func (c *cli) renews(ctx context.Context, api *client.Client, i kbroker.InstanceFile, own *credential.Kept) {
	told := false
	for {
		held := own.Look()
		if held.Life() == 0 {
			return // it holds for ever
		}
		var err error
		if held.Left(creditRenew) <= 0 {
			asking, cancel := context.WithTimeout(ctx, creditWithin)
			err = signStart(asking, api, i, own)
			cancel()
		}
		if err == nil {
			err = own.Save()
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !told:
			c.say("the credential of the program is not renewed, or not written; trying again: %v", err)
		}
		told = err != nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(creditLookMin, held.Life()/creditLook), creditLookMax)):
		}
	}
}
