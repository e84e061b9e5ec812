// Ledger is one of two apps, by its argument: payers whose turns publish their payments, with a
// total of each, which subscribes to them; or the audit of another app, whose handlers note
// every payment.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/kbroker/kbroker/sdk"
)

// Payment is the n-th of a payer.
type Payment struct {
	Payer string `json:"payer"`
	N     int    `json:"n"`
}

// Total is what a payer's payments came to: each is to come once, in order.
type Total struct {
	Payments int      `json:"payments"`
	Wrong    []string `json:"wrong,omitempty"`
}

// Noted are the payments of a payer that were handled.
type Noted struct {
	All map[int]bool `json:"all"`
}

func main() {
	app := sdk.New()
	if os.Args[1] == "audit" {
		audit(app)
	} else {
		ledger(app)
	}
	app.Main()
}

func ledger(app *sdk.App) {
	payers := sdk.Objects[struct{ N int }](app, "payer")
	sdk.Method(payers, "pay", func(p *struct{ N int }, ctx context.Context, _ struct{}) (int, error) {
		p.N++
		return p.N, sdk.PublishDurable(ctx, "payments", Payment{sdk.Self(ctx).ID, p.N})
	})
	totals := sdk.Objects[Total](app, "total")
	sdk.SubscribeObject(totals, "ledger/payments", func(p Payment) string { return p.Payer }, "add")
	sdk.Method(totals, "add", func(t *Total, _ context.Context, p Payment) (struct{}, error) {
		if t.Payments++; p.N != t.Payments {
			t.Wrong = append(t.Wrong, fmt.Sprintf("payment %d came as number %d", p.N, t.Payments))
		}
		return struct{}{}, nil
	})
	sdk.ReadOnly(totals, "get", func(t *Total, _ context.Context, _ struct{}) (Total, error) { return *t, nil })
}

func audit(app *sdk.App) {
	noted := sdk.Objects[Noted](app, "noted")
	sdk.Method(noted, "note", func(n *Noted, _ context.Context, p Payment) (struct{}, error) {
		if n.All == nil {
			n.All = map[int]bool{}
		}
		n.All[p.N] = true
		return struct{}{}, nil
	})
	sdk.ReadOnly(noted, "count", func(n *Noted, _ context.Context, _ struct{}) (int, error) { return len(n.All), nil })
	sdk.SubscribeDurable(app, "ledger/payments", func(ctx context.Context, p Payment) error {
		return sdk.Tell(ctx, app.Object("audit/noted:"+p.Payer), "note", p)
	})
}
