package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

const (
	// failureLogLines is how much output is shown of an instance that kept a
	// rollout from getting done, failureLogWait how long reading it may take.
	failureLogLines = 10
	failureLogWait  = 5 * time.Second
)

// rollout follows a version until it is done and tells how it goes. When it
// failed, the last output of an instance that is not ready is shown.
func (c *cli) rollout(ctx context.Context, api *client.Client, app kbroker.AppName, version int) error {
	shown := changes{cli: c}
	err := api.Follow(ctx, app, version, shown.show)
	if err == nil || exitCode(err) != exitFailed || ctx.Err() != nil {
		return err
	}
	guilty, ok := troubled(shown.last.Instances, version)
	if !ok {
		return err
	}
	if e := kbroker.AsError(err); guilty.State == kbroker.StateRunning && e.Hint == "" && waitsForSDK(ctx, api, app, guilty) {
		err = e.WithHint("the program runs and has not said that it is ready; one without the SDK needs `health: {ready: alive}` in its spec")
	}
	if e := kbroker.AsError(err); guilty.State == kbroker.StateRunning && e.Hint == "" && guilty.Service == kbroker.AllocatorService {
		err = e.WithHint("the program runs and has not said that it is ready; that of a policy calls allocator.Run")
	}
	return lastOutput(ctx, api, app, guilty, err)
}

// waitsForSDK reports whether an instance has to say through the SDK that it is
// ready.
func waitsForSDK(ctx context.Context, api *client.Client, app kbroker.AppName, r kbroker.InstanceRow) bool {
	v, err := api.Version(ctx, app)
	if err != nil {
		return false
	}
	i := slices.IndexFunc(v.App.Services, func(s kbroker.Service) bool { return s.Name == r.Service })
	return i >= 0 && v.App.Services[i].Health.Ready == kbroker.HealthSDK
}

// changes prints what is new in each look at an app.
type changes struct {
	cli    *cli
	states map[string]string
	last   client.Progress
}

func (s *changes) show(p client.Progress) {
	if s.states == nil {
		s.states = map[string]string{}
	}
	s.last = p
	seen := map[string]bool{}
	for _, r := range p.Instances {
		if r.Instance == nil {
			continue
		}
		name := string(*r.Instance)
		seen[name] = true
		line := string(r.State)
		if text := remark(r); text != "" {
			line += ": " + oneLine(text)
		}
		if s.states[name] == line {
			continue
		}
		s.states[name] = line
		state := s.cli.paint(s.cli.err, stateColor(string(r.State)))(string(r.State))
		s.cli.say("  %-28s %-8s %s%s", name, orDash(r.Host), state, strings.TrimPrefix(line, string(r.State)))
	}
	for name := range s.states {
		if !seen[name] {
			delete(s.states, name)
			s.cli.say("  %-28s %-8s gone", name, "")
		}
	}
}

// troubled finds an instance of the version that is not ready, best one that
// has crashed.
func troubled(rows []kbroker.InstanceRow, version int) (kbroker.InstanceRow, bool) {
	var found kbroker.InstanceRow
	for _, r := range rows {
		if r.Instance == nil || r.State == kbroker.StateReady {
			continue
		}
		allocator := r.Service == kbroker.AllocatorService
		if allocator && (found.Instance != nil || r.Version != version) {
			continue // it may be what keeps a rollout from getting done where it is the app's own
		}
		if found.Instance == nil || !allocator && found.Service == kbroker.AllocatorService || r.Version == version && (found.Version != version || r.Exit != nil && found.Exit == nil) {
			found = r
		}
	}
	return found, found.Instance != nil
}

// lastOutput is failed with the last output of an instance.
func lastOutput(ctx context.Context, api *client.Client, app kbroker.AppName, r kbroker.InstanceRow, failed error) error {
	ctx, cancel := context.WithTimeout(ctx, failureLogWait)
	defer cancel()
	lines, err := api.Tail(ctx, app, *r.Instance, failureLogLines)
	title := fmt.Sprintf("last output of %s:", *r.Instance)
	switch {
	case err != nil:
		title = fmt.Sprintf("the output of %s cannot be read: %v", *r.Instance, err)
	case len(lines) == 0:
		title = fmt.Sprintf("%s wrote nothing", *r.Instance)
	}
	return &outputError{error: failed, title: title, lines: lines}
}
