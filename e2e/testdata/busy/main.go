// Busy has a child that holds 100 MB and works all the time. It writes the child's pid to
// the file "child" of its directory, and knows nothing of kbroker.
package main

import (
	"fmt"
	"os"
	"os/exec"
)

func main() {
	if len(os.Args) > 1 {
		held := make([]byte, 100_000_000)
		for i := 0; ; i = (i + 4096) % len(held) {
			held[i]++
		}
	}
	child := exec.Command(os.Args[0], "child")
	if err := child.Start(); err != nil {
		panic(err)
	}
	if err := os.WriteFile("child", fmt.Append(nil, child.Process.Pid), 0o600); err != nil {
		panic(err)
	}
	if err := child.Wait(); err != nil {
		panic(err)
	}
}
