//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coder/websocket"

	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk/sdktest"
)

var shots = flag.String("shots", "", "a directory for screenshots")

// chromium runs a browser without a screen until the test ends, and returns where it is
// told what to do. The test is skipped where there is none.
func chromium(t *testing.T) (address string) {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skipf("NOTHING IS TESTED of the page in a browser: %v; tools/chromium-install.sh installs it", err)
	}
	dir := t.TempDir()
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
		"--remote-debugging-port=0", "--user-data-dir="+dir, "about:blank")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir) // what it leaves goes with the test
	var out bytes.Buffer
	cmd.Stderr = &out
	// A group of its own, so that what it starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("chromium said:\n%s", &out)
		}
	})
	wait.Until(t, patience, func() error {
		b, err := os.ReadFile(filepath.Join(dir, "DevToolsActivePort"))
		port, _, _ := strings.Cut(string(b), "\n")
		if address = "127.0.0.1:" + port; err == nil && port == "" {
			err = errors.New("it says no port yet")
		}
		return err
	})
	return address
}

// browserTab is a page that a browser shows, by the DevTools protocol.
type browserTab struct {
	t    *testing.T
	conn *websocket.Conn
	next int
}

func open(t *testing.T, browser, address string) *browserTab {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+browser+"/json/new?"+url.QueryEscape(address), nil)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reply.Body.Close() }()
	var made struct {
		URL string `json:"webSocketDebuggerUrl"`
	}
	if err := json.NewDecoder(reply.Body).Decode(&made); err != nil {
		t.Fatalf("open %s: status %s: %v", address, reply.Status, err)
	}
	conn, _, err := websocket.Dial(t.Context(), made.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadLimit(32 << 20) // screenshots
	t.Cleanup(func() { _ = conn.CloseNow() })
	return &browserTab{t: t, conn: conn}
}

// do runs one command; what the page tells of its own accord is left out.
func (b *browserTab) do(method string, params map[string]any, result any) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	b.next++
	order, err := json.Marshal(map[string]any{"id": b.next, "method": method, "params": params})
	if err == nil {
		err = b.conn.Write(ctx, websocket.MessageText, order)
	}
	for err == nil {
		var data []byte
		if _, data, err = b.conn.Read(ctx); err != nil {
			break
		}
		var m struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err = json.Unmarshal(data, &m); err != nil || m.ID != b.next {
			continue
		}
		if m.Error != nil {
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		}
		if result != nil {
			err = json.Unmarshal(m.Result, result)
		}
		if err == nil {
			return
		}
	}
	b.t.Fatalf("%s: %v", method, err)
}

// text is what a script in the page comes to.
func (b *browserTab) text(script string) string {
	b.t.Helper()
	var r struct {
		Result           struct{ Value string }
		ExceptionDetails json.RawMessage
	}
	b.do("Runtime.evaluate", map[string]any{"expression": "String(" + script + ")"}, &r)
	if r.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", script, r.ExceptionDetails)
	}
	return r.Result.Value
}

// list is what stands in the elements of a selector.
func (b *browserTab) list(selector string) string {
	b.t.Helper()
	return b.text(fmt.Sprintf(`[...document.querySelectorAll(%q)].map(e => e.textContent).join("|")`, selector))
}

func (b *browserTab) shows(selector, want string) {
	b.t.Helper()
	wait.Until(b.t, patience, func() error {
		if got := b.list(selector); got != want {
			return fmt.Errorf("%s shows %q, want %q", selector, got, want)
		}
		return nil
	})
}

// types types a text where the cursor is, and the enter key.
func (b *browserTab) types(text string) {
	b.t.Helper()
	b.do("Input.insertText", map[string]any{"text": text}, nil)
	for _, kind := range []string{"keyDown", "keyUp"} {
		b.do("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}, nil)
	}
}

func (b *browserTab) shoot(name string, width, height int, dark bool) {
	b.t.Helper()
	if *shots == "" {
		return
	}
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	b.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}, nil)
	var r struct{ Data string }
	b.do("Page.captureScreenshot", map[string]any{"format": "png"}, &r)
	png, err := base64.StdEncoding.DecodeString(r.Data)
	if err == nil {
		err = os.WriteFile(filepath.Join(*shots, name+".png"), png, 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// Two browsers, each at a web server of its own, see what the other one writes, who is
// there, and all of it again when the room's owner has been killed.
func TestTwoBrowsersInARoom(t *testing.T) {
	browser := chromium(t)
	c := sdktest.New(t)
	c.Run("chat/rooms", serveRooms)
	c.Run("chat/rooms", serveRooms)
	first, _ := serveFront(t, c)
	second, stop := serveFront(t, c)
	at := func(address, name string) string {
		return "http://" + address + "/?" + url.Values{"room": {"tea & cake"}, "name": {name}}.Encode()
	}
	open(t, browser, "http://"+first+"/").shoot("door", 900, 600, false)
	alice, bob := open(t, browser, at(first, "alice")), open(t, browser, at(second, "bob"))
	alice.shows("#here li", "alice (you)|bob")
	bob.shows("#here li", "alice|bob (you)")
	alice.shows("#none", "Nobody has said anything yet.")
	alice.shoot("empty", 900, 600, false)
	alice.types("Good morning! Is there any cake <b>left</b>?")
	bob.shows("#talk .text", "Good morning! Is there any cake <b>left</b>?")
	bob.types("Two pieces.")
	bob.types("One of them is mine, though.")
	alice.shows("#talk .text", "Good morning! Is there any cake <b>left</b>?|Two pieces.|One of them is mine, though.")
	alice.shows("#rooms li", "tea & cake")
	alice.shoot("talk", 900, 600, false)
	alice.shoot("dark", 900, 600, true)
	alice.shoot("narrow", 390, 700, false)

	bob.do("Page.close", nil, nil)
	alice.shows("#here li", "alice (you)")
	c.Kill(c.Owner("chat/room:tea & cake"))
	alice.types("Anyone?")
	alice.shows("#talk .text", "Good morning! Is there any cake <b>left</b>?|Two pieces.|One of them is mine, though.|Anyone?")

	stop() // nobody misses bob's server
	carol := open(t, browser, at(first, "carol"))
	carol.shows("#talk .text", "Good morning! Is there any cake <b>left</b>?|Two pieces.|One of them is mine, though.|Anyone?")
	alice.shows("#here li", "alice (you)|carol")
	carol.text(`socket.close()`) // it connects again by itself
	carol.shows("#state", "")
	alice.types("Hello carol")
	carol.shows("#talk .mine .text", "")
	carol.shows("#talk li:last-child .text", "Hello carol")
}
