package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/output"
	"github.com/kbroker/kbroker/subjects"
)

// maxLogRequests may wait; the broker drops further ones, and who asked asks
// again.
const maxLogRequests = 64

func newOutputs(cfg Config) *output.Files {
	return output.New(output.Config{
		Instances: cfg.Dir.homes,
		Path:      func(k kbroker.StatusKey) string { return filepath.Join(cfg.Dir.home(k), outputFile) },
		Log:       cfg.Log,
	})
}

// serveLogs answers who asks for output until ctx ends.
func (a *Agent) serveLogs(ctx context.Context) error {
	asked := make(chan *nats.Msg, maxLogRequests)
	sub, err := a.cfg.Conn.ChanSubscribe(subjects.Host(a.cfg.Host, subjects.VerbLogs, "*"), asked)
	if err != nil {
		return fmt.Errorf("subscribe to log requests: %w", err)
	}
	defer sub.Unsubscribe()
	select {
	case <-ctx.Done():
		return nil
	case <-a.outputs.Settled(): // before that nobody knows what is in the files
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-asked:
			reply, err := a.logs(m)
			if err := respond(m, reply, err); err != nil {
				a.log.Debug("log request not answered", "err", err)
			}
		}
	}
}

// logs is the answer to a request.
func (a *Agent) logs(m *nats.Msg) (kbroker.LogReply, error) {
	var r kbroker.LogRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return kbroker.LogReply{}, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	tenant, _ := subjects.TenantOf(m.Subject) // the server lets nobody ask for another
	k := kbroker.StatusKey{Tenant: tenant, Instance: r.Instance}
	if err := validKey(k); err != nil {
		return kbroker.LogReply{}, err
	}
	reply, err := a.outputs.Read(k, r)
	if errors.Is(err, os.ErrNotExist) {
		return reply, kbroker.Errorf(kbroker.NotFound, "host %s has no output of instance %s", a.cfg.Host, r.Instance).
			WithHint("output of ended instances is kept for %v", keepEnded)
	}
	return reply, err
}
