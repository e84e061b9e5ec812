package sdk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// moveWithin bounds the way to a new link, from the dial to the switch.
	moveWithin = 5 * time.Second
	// moveAgain is the pause after one that failed, up to twice as long: its
	// server is still there and may be for a while, another one may come.
	moveAgain = 250 * time.Millisecond
	// maxLinks bounds the links of a transport: the current one, one that
	// comes, and those that are left.
	maxLinks = 4
	// echoPause is the time between two echoes, from echoPause on doubling to
	// echoPauseMax. The first ones can be too early: subscriptions spread.
	echoPause    = 2 * time.Millisecond
	echoPauseMax = 50 * time.Millisecond
	// echoWithin bounds the proof that two servers are of one cluster.
	echoWithin = time.Second
	// leaveWithin bounds each step of leaving a link: a round trip, a drain.
	leaveWithin = 2 * time.Second
	// homeDoublings bounds how much longer the way home is put off each time.
	homeDoublings = 4
)

// pace says how long the mover waits.
type pace struct {
	// linger is how long a link stays that was left: requests and answers that
	// are under way between the servers find it, and nobody sends over it any
	// more when it is closed.
	linger time.Duration
	// homeMin to homeMax, by chance: how often a process looks whether it can
	// return home. All that were there before a core went must not come back at
	// once.
	homeMin, homeMax time.Duration
	// stable is how long a connection must have been there before it is left
	// for home.
	stable time.Duration
	// trust is how long home must have held for the next way back to it not to
	// be put off: twice as long with each time it did not.
	trust time.Duration
}

// calm is the pace of every process.
var calm = pace{linger: time.Second, homeMin: 20 * time.Second, homeMax: time.Minute, stable: 20 * time.Second, trust: 10 * time.Minute}

// homeWait is the time until the next look at home, after so many ways back of
// which each came before home was trusted again.
func (p pace) homeWait(returns int) time.Duration {
	return (p.homeMin + rand.N(p.homeMax-p.homeMin+1)) << min(returns, homeDoublings)
}

// goesHome decides whether a process may leave a connection that works, because
// it is not home. since is when the connection was made, zero if it is lost.
// Pure.
func goesHome(since, now time.Time, lame, atHome bool, stable time.Duration) bool {
	return !since.IsZero() && !lame && !atHome && now.Sub(since) >= stable
}

// mover changes the server of a transport such that no request is lost ("make
// before break"): a second link is made, everything is joined there, the
// transport sends over it, and only then the first link is left. It does so
// when the server of the current link says that it shuts down (lame duck), before
// the credential ends that the link was made with, and to return home. The first
// cannot wait, and the others are given up for it. Without another server within
// reach it stays, and nats.go reconnects when the server has gone.
type mover struct {
	t       *natsTransport
	network *network
	pace    pace
	on      connEvents
	due     chan struct{} // a server shuts down: look at the current link
	aged    chan struct{} // look whether the current link has an older credential than there is

	cancel  context.CancelFunc
	running sync.WaitGroup
	left    sync.WaitGroup // the links that are being left; run waits for them

	// Of run's goroutine.
	homeID   string // the server that answered at home's address
	returns  int    // ways home in a row that were soon for nothing
	returned time.Time
}

func (m *mover) events() linkEvents {
	return linkEvents{m.on, func() { stir(m.due) }}
}

// stir wakes who waits for c, of capacity 1.
func stir(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // it will look anyway
	}
}

func (m *mover) start() {
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.running.Go(func() { m.run(ctx) })
	if m.network.own != nil {
		m.running.Go(func() { m.renews(ctx) })
	}
}

// stop ends it at once, and every link that was being left.
func (m *mover) stop() {
	m.cancel()
	m.running.Wait()
}

func (m *mover) run(ctx context.Context) {
	defer m.left.Wait()
	again, home := time.NewTimer(moveAgain), time.NewTimer(m.pace.homeWait(0))
	defer again.Stop()
	defer home.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.due:
		case <-m.aged:
		case <-again.C:
		case <-home.C:
			m.yielding(ctx, func(way context.Context) { m.goHome(ctx, way) })
			home.Reset(m.pace.homeWait(m.returns))
		}
		if wait := m.look(ctx); wait > 0 {
			again.Reset(wait)
		}
	}
}

// look leaves the current link if it must be left, and returns when to try again; 0: no
// need.
func (m *mover) look(ctx context.Context) time.Duration {
	l := m.t.link.Load()
	switch since, lame := l.state(); {
	case since.IsZero():
	case lame:
		if err := m.move(ctx, ctx, l, m.network.elsewhere(l), false); err != nil && ctx.Err() == nil {
			m.t.log.Warn("the server shuts down and no other takes over yet", "server", l.conn.ConnectedUrlRedacted(), "err", err)
			return moveAgain + rand.N(moveAgain)
		}
	case m.isOutdated(l):
		var err error
		m.yielding(ctx, func(way context.Context) {
			servers := append([]string{l.conn.ConnectedUrl()}, m.network.elsewhere(l)...)
			err = m.move(ctx, way, l, slices.DeleteFunc(servers, func(s string) bool { return s == "" }), true)
		})
		if err != nil && ctx.Err() == nil {
			m.t.log.Warn("no server takes the renewed credential of this process yet", "left", l.held().Left(1), "err", err)
			return askAgain(l.held())
		}
	}
	return 0
}

// yielding runs what is to be given up when a server shuts down: way ends then, and there
// is still to be looked at who.
func (m *mover) yielding(ctx context.Context, run func(way context.Context)) {
	way, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); run(way) }()
	select {
	case <-done:
	case <-m.due:
		cancel()
		<-done
		stir(m.due)
	}
}

// goHome returns to the process's own server, if that is there again.
func (m *mover) goHome(ctx, way context.Context) {
	l, home := m.t.link.Load(), m.network.home()
	since, lame := l.state()
	at := l.conn.ConnectedUrl() == home || l.conn.ConnectedServerId() == m.homeID
	now := time.Now()
	if at && now.Sub(m.returned) >= m.pace.trust {
		m.returns = 0
	}
	if !goesHome(since, now, lame, at, m.pace.stable) {
		return
	}
	switch err := m.move(ctx, way, l, []string{home}, false); {
	case errors.Is(err, errSame):
		m.homeID = l.conn.ConnectedServerId() // by another address
		return
	case err != nil:
		return // not back, or not in the cluster
	}
	if m.returned.IsZero() || now.Sub(m.returned) >= m.pace.trust {
		m.returns = 0
	} else {
		m.returns++
	}
	m.returned = now
}

var (
	errBusy     = errors.New("links that were left are not closed yet")
	errSame     = errors.New("it is the same server")
	errOverrun  = errors.New("the connection was lost before the switch")
	errNoAnswer = errors.New("does not hear what is sent elsewhere")
)

// move takes the transport from one link to another server, or (same) to one that may
// be the same. way ends it until the switch, ctx also what follows. When it returns an
// error nothing has changed.
func (m *mover) move(ctx, way context.Context, from *link, servers []string, same bool) error {
	if len(m.t.joins.open()) >= maxLinks {
		return errBusy
	}
	way, cancel := context.WithTimeout(way, moveWithin)
	defer cancel()
	to, err := m.network.second(way, servers, m.events())
	if err != nil {
		return err
	}
	server := to.conn.ConnectedUrlRedacted()
	if !same && to.conn.ConnectedServerId() == from.conn.ConnectedServerId() {
		to.conn.Close()
		return errSame
	}
	if err := m.t.joins.enter(to); err != nil {
		to.conn.Close()
		return err
	}
	if err = m.prove(way, from, to); err == nil && !m.swap(from, to) {
		err = errOverrun
	}
	if err != nil {
		m.leave(ctx, to, false)
		return fmt.Errorf("move to %s: %w", server, err)
	}
	m.t.log.Info("moved to another server", "from", from.conn.ConnectedUrlRedacted(), "server", server)
	m.leave(ctx, from, true)
	return nil
}

// swap makes the new link the current one, unless one of both was lost.
func (m *mover) swap(from, to *link) bool {
	if since, _ := from.state(); since.IsZero() || !to.turn(current) {
		return false
	}
	m.t.link.Store(to)
	return true
}

// prove returns nil when both servers have shown that they are of one cluster
// and know the subscriptions of the links: a core that has just started listens
// before its routes are there.
func (m *mover) prove(ctx context.Context, from, to *link) error {
	ctx, cancel := context.WithTimeout(ctx, echoWithin)
	defer cancel()
	if err := echo(ctx, from.conn, to.conn); err != nil {
		return err
	}
	return echo(ctx, to.conn, from.conn)
}

// echo sends over one connection until it is heard over the other.
func echo(ctx context.Context, from, to *nats.Conn) error {
	subject, heard := to.NewInbox(), make(chan struct{}, 1)
	sub, err := to.Subscribe(subject, func(*nats.Msg) {
		select {
		case heard <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only if the link is closed
	if err := to.FlushWithContext(ctx); err != nil {
		return err
	}
	again := time.NewTimer(0)
	defer again.Stop()
	for pause := echoPause; ; {
		select {
		case <-heard:
			return nil
		case <-ctx.Done():
			return errNoAnswer
		case <-again.C:
			if err := from.Publish(subject, nil); err != nil {
				return err
			}
			again.Reset(pause)
			pause = min(2*pause, echoPauseMax)
		}
	}
}
