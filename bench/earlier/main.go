// Command earlier is a child of the bench and nothing else. Copied into the checkout of
// an earlier commit, with ../child, it is one with the SDK of that commit.
package main

import (
	"fmt"
	"os"

	"github.com/kbroker/kbroker/bench/child"
)

func main() {
	if !child.Is(os.Args[1:]) {
		fmt.Fprintln(os.Stderr, "earlier: the bench starts this program; see its README.md")
		os.Exit(2)
	}
	os.Exit(child.Main(os.Args[1], child.KBroker{}))
}
