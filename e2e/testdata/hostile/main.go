// Command hostile is a program that hurts its host, in the way of its first argument:
//
//	eat N     takes N bytes of memory
//	deaf      does not leave when it is told to
//	bomb      forks as often as it can, and so does what it has forked
//	hog       keeps all processors busy
//	fill      writes until the disk is full, and says how that ended
//	open N    opens N files, and says how that ended
//
// What it says is on its output. It stays then, until it is told to leave.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	var err error
	switch what := os.Args[1]; what {
	case "eat":
		err = eat(os.Args[2])
	case "deaf":
		signal.Reset(syscall.SIGTERM)
		signal.Ignore(syscall.SIGTERM)
	case "bomb":
		bomb()
	case "hog":
		for range runtime.NumCPU() {
			go func() {
				for {
				}
			}()
		}
	case "fill":
		fill()
	case "open":
		err = open(os.Args[2])
	default:
		err = fmt.Errorf("there is no %s", what)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("it stays")
	<-told // a timer would need a file
}

// eat touches what it takes: the kernel gives no memory before.
func eat(bytes string) error {
	n, err := strconv.Atoi(bytes)
	if err != nil {
		return err
	}
	const page = 4096
	taken := make([]byte, n)
	for i := 0; i < n; i += page {
		taken[i] = 1
	}
	fmt.Printf("it has taken %d bytes\n", len(taken))
	runtime.KeepAlive(taken)
	return nil
}

// bomb goes on forking when it may not: a fork bomb does not end by its limit.
func bomb() {
	spareThreads()
	for refused := 0; ; {
		cmd := exec.Command("/bin/sh", "-c", "f() { f & f & wait; }; f")
		if err := cmd.Start(); err != nil {
			if refused++; refused%1000 == 1 {
				fmt.Println(err)
			}
			<-time.After(time.Millisecond)
			continue
		}
		_ = cmd.Wait() // it has failed
	}
}

// spareThreads makes threads while that is allowed: a Go program without one dies.
func spareThreads() {
	const threads = 16
	var all, made sync.WaitGroup
	all.Add(threads)
	for range threads {
		made.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			all.Done()
			all.Wait()
		})
	}
	made.Wait()
}

// fill keeps what it has written.
func fill() {
	f, err := os.Create("filled")
	if err != nil {
		fmt.Println(err)
		return
	}
	var n int
	for err == nil {
		var more int
		more, err = f.Write(make([]byte, 1<<16))
		n += more
	}
	fmt.Printf("%d bytes were written: %v\n", n, err)
}

func open(count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	for i := range n {
		if _, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0); err != nil {
			fmt.Printf("file %d of %d: %v\n", i+1, n, err)
			return nil
		}
	}
	fmt.Printf("%d files are open\n", n)
	return nil
}
