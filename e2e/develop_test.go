package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestANewApplication is made in an empty directory, tested, run beside the
// cluster, deployed and called: as it is.
func TestANewApplication(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	dir := filepath.Join(t.TempDir(), "shop")
	checkout, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	c.must("init", dir, "--replace", checkout)
	for _, args := range [][]string{{"vet", "./..."}, {"test", "./..."}, {"build", "-o", "bin/shop", "."}} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOPROXY=off", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
	cmd := exec.Command(kbrokerBin, "run", "--", "./bin/shop")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "KBROKER_DIR="+c.dir)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	ask := func(by string) error {
		out, code := c.try("call", "shop/shop", "ask", "word=tea", "-o", "json", "--timeout", "2s")
		var answer struct {
			By string `json:"by"`
		}
		if err := json.Unmarshal([]byte(out), &answer); err != nil || code != 0 || !strings.HasPrefix(answer.By, by) {
			return fmt.Errorf("call: exit code %d, %q; want an answer by %s", code, out, by)
		}
		return nil
	}
	wait.Until(t, 10*time.Second, func() error { return ask("shop-shop-dev") })
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("run ended with %v after an interrupt, want 0:\n%s", err, said.String())
	}
	c.must("deploy", filepath.Join(dir, "app.yaml"))
	wait.Until(t, 5*time.Second, func() error { return ask("shop-shop-1") })
	c.settled(10*time.Second, "shop", 2)
}

// echoed is the answer of a program that `kbroker run` runs.
type echoed struct {
	Reconnects uint64 `json:"reconnects"`
}

// echo serves a method with what the environment of a program has, and no SDK.
func echo() error {
	leave := make(chan os.Signal, 1)
	signal.Notify(leave, syscall.SIGINT, syscall.SIGTERM)
	nc, err := nats.Connect(os.Getenv("NATS_URL"), nats.UserCredentials(os.Getenv("NATS_CREDS")), nats.RootCAs(os.Getenv("NATS_CA")),
		nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		return err
	}
	defer nc.Close()
	_, err = nc.QueueSubscribe(subjects.Method("echo", "echo", "say"), subjects.QueueService, func(m *nats.Msg) {
		b, err := json.Marshal(echoed{nc.Stats().Reconnects})
		if err == nil {
			err = m.Respond(b)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	})
	if err != nil {
		return err
	}
	<-leave
	return nil
}
