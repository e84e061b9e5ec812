package connect

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// maxGreeting bounds the line that a server sends first.
const maxGreeting = 64 << 10

// Greeting says whether somebody takes connections at a client address of a core,
// host:port, and the cluster that a NATS server there says it is of. A server says
// that before it shows a certificate or asks for a credential: it may be believed
// for not disturbing it, and for nothing else. There, with an error: it said nothing
// within the bound, or something else.
func Greeting(ctx context.Context, addr string, within time.Duration) (there bool, cluster string, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false, "", fmt.Errorf("connect to %s: %w", addr, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	line, err := bufio.NewReaderSize(conn, maxGreeting).ReadSlice('\n')
	if err != nil {
		return true, "", fmt.Errorf("read the greeting of %s: %w", addr, err)
	}
	info, isNATS := strings.CutPrefix(string(line), "INFO ")
	if !isNATS {
		return true, "", errors.New("it is no NATS server")
	}
	var said struct {
		Cluster string `json:"cluster"`
	}
	if err := json.Unmarshal([]byte(info), &said); err != nil {
		return true, "", fmt.Errorf("greeting of %s: %w", addr, err)
	}
	return true, said.Cluster, nil
}
