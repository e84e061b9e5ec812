package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// uploadWindow is how many chunks may be under way: enough to keep a core
	// busy, too few to fill its buffers.
	uploadWindow = 8
	// chunkRetries is how often chunks are sent again to one core.
	chunkRetries = 3
	// commitBudget is how long a core may take to store an artifact.
	commitBudget = 5 * time.Minute
	// uploadTries bounds the uploads that are begun again with another core.
	uploadTries = 10
)

// commitReply is where the answer to a commit comes in; those to chunks come in
// under their offsets.
const commitReply = "commit"

// errCoreGone ends an upload that another core may take from the start.
var errCoreGone = errors.New("the core that took the upload is gone")

// PutArtifact uploads sizeBytes of r unless the cluster has an artifact of that
// digest (64 hex digits of SHA-256) already. progress (may be nil) is called
// with the number of bytes that have arrived, sizeBytes when all is stored; it
// falls back to 0 when another core has to take over. Errors: Invalid when the
// content has another digest - nothing is stored then; Unavailable.
func (c *Client) PutArtifact(ctx context.Context, sha256 string, sizeBytes int64, r io.ReaderAt, progress func(bytes int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	var err error
	for range uploadTries {
		var begin kbroker.ArtifactBeginReply
		if err := c.read(ctx, subjects.VerbArtifactBegin, kbroker.ArtifactBegin{Tenant: c.tenant, SHA256: sha256, SizeBytes: sizeBytes}, &begin); err != nil {
			return fmt.Errorf("begin upload: %w", err)
		}
		if begin.Have {
			progress(sizeBytes)
			return nil
		}
		u := upload{conn: c.conn, pace: c.pace, subject: subjects.Upload(begin.Core, c.tenant, begin.Session), size: sizeBytes, file: r, progress: progress}
		if err = u.run(ctx); !errors.Is(err, errCoreGone) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pauseMax):
		}
	}
	return kbroker.Errorf(kbroker.Unavailable, "upload: %v", err)
}

// upload is one attempt with one core. Chunks go out in order, up to the
// window, each with a reply subject of its own, so that a lost one is known and
// sent again.
type upload struct {
	conn     *nats.Conn
	pace     pace
	subject  string
	size     int64
	file     io.ReaderAt
	progress func(int64)

	inbox   string
	answers *nats.Subscription
}

func (u *upload) run(ctx context.Context) error {
	u.inbox = u.conn.NewInbox()
	answers, err := u.conn.SubscribeSync(u.inbox + ".*")
	if err != nil {
		return kbroker.Errorf(kbroker.Unavailable, "upload: %v", err)
	}
	defer func() { _ = answers.Unsubscribe() }() // fails only when the connection has ended
	u.answers = answers
	if err := u.chunks(ctx); err != nil {
		return err
	}
	return u.commit(ctx)
}

func (u *upload) chunks(ctx context.Context) error {
	var next, arrived int64
	open := map[int64]bool{} // offsets of chunks that are not acknowledged
	for silent := 0; arrived < u.size; {
		for next < u.size && len(open) < uploadWindow {
			if err := u.chunk(next); err != nil {
				return err
			}
			open[next] = true
			next += u.length(next)
		}
		offset, received, err := u.ack(ctx)
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			if silent++; silent > chunkRetries {
				return errCoreGone
			}
			for _, o := range slices.Sorted(maps.Keys(open)) {
				if err := u.chunk(o); err != nil {
					return err
				}
			}
		case err != nil:
			return err
		case open[offset] && received >= offset+u.length(offset):
			delete(open, offset)
			silent = 0
			arrived += u.length(offset)
			u.progress(min(arrived, u.size-1))
		}
	}
	return nil
}

// length of the chunk at offset.
func (u *upload) length(offset int64) int64 {
	return min(kbroker.ArtifactChunkBytes, u.size-offset)
}

func (u *upload) chunk(offset int64) error {
	data := make([]byte, u.length(offset))
	// A full read may still come with io.EOF.
	if n, err := u.file.ReadAt(data, offset); n < len(data) {
		return fmt.Errorf("read artifact at %d: %w", offset, err)
	}
	at := strconv.FormatInt(offset, 10)
	return u.send(subjects.HeaderOffset, at, at, data)
}

// ack waits for the next acknowledgement of a chunk: which one, and how much
// the core has.
func (u *upload) ack(ctx context.Context) (offset, received int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, u.pace.chunkWait)
	defer cancel()
	msg, err := u.reply(ctx)
	if err != nil {
		return 0, 0, err
	}
	var r kbroker.ArtifactChunkReply
	if err := decode(msg, &r); err != nil {
		return 0, 0, lost(err)
	}
	offset, err = strconv.ParseInt(strings.TrimPrefix(msg.Subject, u.inbox+"."), 10, 64)
	return offset, r.Received, err
}

// commit has the core check and store what it has. Storing takes as long as
// the disks need, so that silence means nothing; that nobody is there is seen
// by asking.
func (u *upload) commit(ctx context.Context) error {
	done, cancel := context.WithTimeout(ctx, commitBudget)
	defer cancel()
	if err := u.send(subjects.HeaderCommit, "1", commitReply, nil); err != nil {
		return err
	}
	for {
		wait, cancel := context.WithTimeout(done, u.pace.commitProbe)
		msg, err := u.reply(wait)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && done.Err() == nil {
			if err := u.probe(done); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if msg.Subject != u.inbox+"."+commitReply {
			continue // a chunk that was sent twice
		}
		if err := lost(decode(msg, nil)); err != nil {
			return err
		}
		u.progress(u.size)
		return nil
	}
}

// probe finds out whether the core is still there: an empty chunk at the end
// adds nothing, and any answer or none in time is fine.
func (u *upload) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, u.pace.commitProbe)
	defer cancel()
	m := &nats.Msg{Subject: u.subject, Header: nats.Header{subjects.HeaderOffset: {strconv.FormatInt(u.size, 10)}}}
	if _, err := u.conn.RequestMsgWithContext(ctx, m); errors.Is(err, nats.ErrNoResponders) {
		return errCoreGone
	}
	return nil
}

// send publishes a message of the session; its answer comes in under reply.
func (u *upload) send(header, value, reply string, data []byte) error {
	m := &nats.Msg{Subject: u.subject, Reply: u.inbox + "." + reply, Header: nats.Header{header: {value}}, Data: data}
	if err := u.conn.PublishMsg(m); err != nil {
		return kbroker.Errorf(kbroker.Unavailable, "upload: %v", err)
	}
	return nil
}

func (u *upload) reply(ctx context.Context) (*nats.Msg, error) {
	msg, err := u.answers.NextMsgWithContext(ctx)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, errCoreGone
	}
	return msg, err
}

// lost makes "begin again" out of a core that forgot the upload (it was
// restarted) or cannot store now.
func lost(err error) error {
	if errors.Is(err, kbroker.NotFound) || errors.Is(err, kbroker.Unavailable) {
		return fmt.Errorf("%w: %w", errCoreGone, err)
	}
	return err
}
