// Bank keeps accounts: objects, each with a balance that survives what happens to hosts.
// A program calls one by sdk.Object("bank/account:alice"), any other client as in
// docs/protocol.md (Calling objects):
//
//	kbroker deploy examples/bank
//	nats request --raw -H Kb-Object:alice -H Kb-Request-Id:me:1 obj.bank.257.account.deposit '{"cents":500}'
package main

import (
	"context"

	"github.com/kbroker/kbroker/sdk"
)

// account is one bank account. No two calls run on it at once, so it needs no lock.
type account struct {
	Cents int64 `json:"cents"`
}

type amount struct {
	Cents int64 `json:"cents"`
}

func (a *account) deposit(_ context.Context, in amount) (account, error) {
	if in.Cents < 1 {
		return account{}, sdk.Errorf(sdk.Invalid, "cents is %d, want 1 or more", in.Cents)
	}
	a.Cents += in.Cents
	return *a, nil
}

func (a *account) withdraw(_ context.Context, in amount) (account, error) {
	switch {
	case in.Cents < 1:
		return account{}, sdk.Errorf(sdk.Invalid, "cents is %d, want 1 or more", in.Cents)
	case in.Cents > a.Cents:
		return account{}, sdk.Errorf("overdrawn", "%d cents are wanted and %d are there", in.Cents, a.Cents)
	}
	a.Cents -= in.Cents
	return *a, nil
}

func (a *account) balance(context.Context, struct{}) (account, error) { return *a, nil }

func main() {
	app := sdk.New()
	serve(app)
	app.Main() // signals, drain, exit code
}

// serve declares what the bank serves, to the cluster and to its test.
func serve(app *sdk.App) {
	accounts := sdk.Objects[account](app, "account")
	sdk.Method(accounts, "deposit", (*account).deposit) // request and reply types are inferred
	sdk.Method(accounts, "withdraw", (*account).withdraw)
	sdk.ReadOnly(accounts, "balance", (*account).balance)
}
