// Bank keeps accounts: objects, each with a balance that survives what happens to hosts.
// A program calls one by sdk.Object("bank/account:alice"), any other client as in
// docs/protocol.md (Calling objects):
//
//	kbroker deploy examples/bank/app.yaml
//	nats request --raw -H Kb-Object:alice -H Kb-Request-Id:me:1 obj.bank.257.account.deposit '{"cents":500}'
package main

import (
	"context"
	"encoding/json"

	"github.com/kbroker/kbroker/sdk"
)

// account is one bank account. No two calls run on it at once, so it needs no lock.
type account struct {
	Cents  int64 `json:"cents"`
	Closed bool  `json:"closed,omitempty"`
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

type transfer struct {
	To    string `json:"to"` // the id of an account
	Cents int64  `json:"cents"`
}

// transfer takes the money from this account, and tells the other one to take it, in one step:
// both is stored, or nothing. The other one takes it once, whatever fails meanwhile, or it
// comes back.
func (a *account) transfer(ctx context.Context, in transfer) (account, error) {
	if _, err := a.withdraw(ctx, amount{in.Cents}); err != nil {
		return account{}, err
	}
	return *a, sdk.Tell(ctx, sdk.Object("bank/account:"+in.To), "credit", amount{in.Cents}, sdk.OnFailure("refund"))
}

// credit is the other half of a transfer.
func (a *account) credit(_ context.Context, in amount) (struct{}, error) {
	if a.Closed {
		return struct{}{}, sdk.Errorf("closed", "the account is closed")
	}
	a.Cents += in.Cents
	return struct{}{}, nil
}

// refund takes back what was not credited.
func (a *account) refund(_ context.Context, f sdk.Failure) (struct{}, error) {
	var in amount
	if err := json.Unmarshal(f.In, &in); err != nil {
		return struct{}{}, err
	}
	a.Cents += in.Cents
	return struct{}{}, nil
}

// shut has the account take no more transfers.
func (a *account) shut(context.Context, struct{}) (account, error) {
	a.Closed = true
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
	sdk.Method(accounts, "transfer", (*account).transfer)
	sdk.Method(accounts, "credit", (*account).credit)
	sdk.Method(accounts, "refund", (*account).refund)
	sdk.Method(accounts, "close", (*account).shut)
	sdk.ReadOnly(accounts, "balance", (*account).balance)
}
