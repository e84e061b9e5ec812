// Policy is an app's own policy, in the ways that tests are about.
package main

import (
	"os"
	"strconv"

	"github.com/kbroker/kbroker/allocator"
)

// how is what it does, by -ldflags "-X main.how=...": a number is how many waiters it wants.
var how = "3"

// count has an app want so many waiters, and is as the built-in policy otherwise.
func count(v allocator.View) allocator.Decision {
	d := allocator.Spread(v)
	switch how {
	case "panics":
		panic("no")
	case "hangs":
		select {}
	case "dies":
		os.Exit(3)
	}
	n, err := strconv.Atoi(how)
	if err != nil {
		panic(err)
	}
	d.Wanted["waiter"], d.Why["waiter"] = n, "its own policy wants "+how
	return d
}

func main() { allocator.Run(count) }
