// Command ill is a kbroker that says its version as one does, and is of no use as
// an agent.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/node"
)

// how it is ill; set by the linker.
var how string

func main() {
	if len(os.Args) > 1 && os.Args[1] == "version" {
		fmt.Printf("{\"version\":\"v9-%s\",\"go\":\"%s\",\"os\":\"%s\",\"arch\":\"%s\"}\n", how, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return
	}
	dir := os.Args[slices.Index(os.Args, "--dir")+1]
	fmt.Fprintln(os.Stderr, "this program is ill:", how)
	switch how {
	case "exits":
		os.Exit(4)
	case "hangs":
		signal.Ignore(syscall.SIGTERM)
	case "holds": // the directory, and nothing else
		if _, err := agent.Lock(dir); err != nil {
			panic(err)
		}
	case "panics", "panics-late":
		serve(dir)
		return
	}
	select {}
}

// serve is a good agent for a while.
func serve(dir string) {
	after := time.Second
	if how == "panics-late" { // when it was in order for long
		after = 8 * time.Second
	}
	time.AfterFunc(after, func() { panic("out of order") })
	if err := node.Serve(context.Background(), node.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}); err != nil {
		panic(err)
	}
}
