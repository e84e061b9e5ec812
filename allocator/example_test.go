package allocator_test

import (
	"fmt"

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

// All of a program that decides by a policy of its own.
func ExampleRun() { allocator.Run(decide) }
