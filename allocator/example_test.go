package allocator_test

import (
	"fmt"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/allocator"
)

// decide has two instances of web for each of the bank, and one more for each whose objects
// have many calls that wait. All else is as the built-in policy balanced has it.
func decide(v allocator.View) allocator.Decision {
	d := allocator.Balance(v)
	web, ok := v.App.Service("web")
	if !ok {
		return d
	}
	banks, n := v.Of("bank"), 0
	for _, i := range banks {
		n += 2
		if i.Load.Waiting > 100 {
			n++
		}
	}
	d.Wanted["web"] = max(web.Count.Min, min(n, web.Count.Max))
	d.Why["web"] = fmt.Sprintf("%d of the bank need %d", len(banks), n)
	return d
}

// A policy is a function: this calls it with what it decides on. In its program main is
// allocator.Run(decide).
func Example() {
	v := allocator.View{
		App: kbroker.App{Name: "shop", Services: []kbroker.Service{
			{Name: "bank", Count: kbroker.Count{Min: 3, Max: 3}, Objects: []kbroker.KindName{"account"}},
			{Name: "web", Count: kbroker.Count{Min: 2, Max: 20}},
		}},
		Instances: []allocator.Instance{
			{Name: "shop-bank-1", Service: "bank", Ready: true},
			{Name: "shop-bank-2", Service: "bank", Ready: true, Load: allocator.Load{Known: true, Waiting: 300}},
			{Name: "shop-bank-3", Service: "bank", Ready: true},
		},
	}
	d := decide(v)
	fmt.Println(d.Wanted["web"], d.Why["web"])
	// Output: 7 3 of the bank need 7
}
