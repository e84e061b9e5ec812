package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// checkupWait bounds one question to one host: its disk and its broker are
// looked at.
const checkupWait = 5 * time.Second

// Maintain asks leave for a host to go down for a moment, under the name of
// holder; it lapses after kbroker.MaintenanceLimit. silent is how long it may be
// silent before it is lost, if that is longer than a restart takes. Errors: NotFound;
// Refused - another host has it, or the cluster would not bear it; NoLeader,
// Unavailable.
func (c *Client) Maintain(ctx context.Context, host kbroker.HostID, holder string, silent time.Duration) (kbroker.MaintainReply, error) {
	return c.maintain(ctx, kbroker.MaintainRequest{Host: host, Holder: holder, Silent: silent})
}

// EndMaintain gives the leave back. Errors: NotFound, NoLeader, Unavailable.
func (c *Client) EndMaintain(ctx context.Context, host kbroker.HostID, holder string) error {
	_, err := c.maintain(ctx, kbroker.MaintainRequest{Host: host, Holder: holder, Done: true})
	return err
}

func (c *Client) maintain(ctx context.Context, r kbroker.MaintainRequest) (kbroker.MaintainReply, error) {
	var reply kbroker.MaintainReply
	return reply, c.write(ctx, subjects.VerbMaintain, r, &reply)
}

// Checkup asks a host's agent how its host is. Unavailable when it does not
// answer within 5 s or ctx.
func (c *Client) Checkup(ctx context.Context, host kbroker.HostID) (kbroker.Checkup, error) {
	ctx, cancel := context.WithTimeout(ctx, checkupWait)
	defer cancel()
	var out kbroker.Checkup
	m, err := c.request(ctx, &nats.Msg{Subject: subjects.Host(host, subjects.VerbCheckup, c.tenant)})
	switch {
	case errors.Is(err, kbroker.Refused):
		return out, err
	case errors.Is(err, nats.ErrNoResponders):
		return out, kbroker.Errorf(kbroker.Unavailable, "the agent of host %s is not there", host)
	case errors.Is(err, context.DeadlineExceeded):
		return out, kbroker.Errorf(kbroker.Unavailable, "the agent of host %s does not answer", host)
	case err != nil:
		return out, kbroker.Errorf(kbroker.Unavailable, "the agent of host %s: %v", host, err)
	}
	return out, decode(m, &out)
}

// FollowRestart returns the checkup of the first agent of the host that is not
// the given process any more, is ready, and whose core is caught up, settled and
// takes writes. show (may be nil) is called with what is missing, whenever that
// changes. DeadlineExceeded with what is missing when ctx ended first.
func (c *Client) FollowRestart(ctx context.Context, host kbroker.HostID, process string, show func(missing string)) (kbroker.Checkup, error) {
	tick := time.NewTicker(c.pace.followEvery)
	defer tick.Stop()
	shown := ""
	for {
		checkup, missing := c.restarted(ctx, host, process)
		if missing == "" {
			return checkup, nil
		}
		if ctx.Err() == nil && missing != shown {
			if shown = missing; show != nil {
				show(missing)
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return checkup, ctx.Err()
			}
			return checkup, kbroker.Errorf(kbroker.DeadlineExceeded, "%s", shown)
		case <-tick.C:
		}
	}
}

// restarted says what is missing for a host to be back.
func (c *Client) restarted(ctx context.Context, host kbroker.HostID, process string) (kbroker.Checkup, string) {
	got, err := c.Checkup(ctx, host)
	if err != nil {
		return got, err.Error()
	}
	if missing := notBack(got, process); missing != "" {
		return got, missing
	}
	rows, err := c.Hosts(ctx, false)
	if err != nil {
		return got, err.Error()
	}
	for _, r := range rows {
		if r.Name == host {
			if r.State != kbroker.HostReady && r.State != kbroker.HostDraining {
				return got, fmt.Sprintf("host %s is %s", host, r.State)
			}
			return got, ""
		}
	}
	return got, fmt.Sprintf("host %s is not in the list of hosts", host)
}

// notBack says what is missing in a host's own answer.
func notBack(got kbroker.Checkup, process string) string {
	core := got.Core
	switch {
	case got.Process == process:
		return fmt.Sprintf("the agent of host %s has not restarted", got.Host)
	case !got.Proven && got.Instances > 0:
		return fmt.Sprintf("the agent of host %s has not received its view", got.Host)
	case core == nil:
		return ""
	case !core.Leader:
		return fmt.Sprintf("core %s sees no leader of the broker", got.Host)
	case !core.Current[got.Host]:
		return fmt.Sprintf("core %s has not caught up", got.Host)
	case core.Unsettled != "":
		return core.Unsettled
	case !core.Fresh || !core.Settled:
		return fmt.Sprintf("core %s has not looked at all streams", got.Host)
	case !core.Writable:
		return fmt.Sprintf("the control store does not take writes from core %s", got.Host)
	}
	return ""
}
