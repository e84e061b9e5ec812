package state

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// reportRetries bounds how often a report is tried again because another core
// wrote one of the same host meanwhile.
const reportRetries = 3

// revokedLonger is how much longer than the credential its revocation is kept: clocks
// differ.
const revokedLonger = 10 * time.Minute

// revokedLongest bounds how long a record can be kept: the store counts nanoseconds from
// 1970 on, to the year 2262.
const revokedLongest = 100 * 365 * 24 * time.Hour

// reportRecord is the number of a host's last report, and of which admission that is; 0:
// not known.
type reportRecord struct {
	Process    string `json:"process"`
	Number     uint64 `json:"number"`
	Generation int    `json:"generation,omitempty"`
}

// next is the record of a report behind the last one; false: it is not a later one. A name
// that was admitted again counts anew. Of an admission that is not known the numbers alone
// count.
func (last reportRecord) next(r kbroker.ReportRequest) (reportRecord, bool) {
	of := reportRecord{Process: r.Process, Number: r.Number, Generation: r.Generation}
	switch {
	case of.Generation == 0 || last.Generation == 0:
		of.Generation = max(of.Generation, last.Generation)
		return of, of.Number > last.Number
	case of.Generation != last.Generation:
		return of, of.Generation > last.Generation
	}
	return of, of.Number > last.Number
}

// Report writes a host's report: one batch guarded by the host's report number
// (a report larger than a batch: several, of which the last raises the number).
// The number is the last message: of a batch that a crash cut short (see
// Leader.mend) it is missing, and the report is sent again.
// A number that is not higher than the stored one of this admission of the host, or of a
// later one, changes nothing: Accepted is false and Number the stored one, whichever
// process sent it. The caller has looked that the Generation is the host's; 0: it does not
// know.
//
// Errors: Invalid - a status of another host. Unavailable - the outcome is not
// known; the same report may be sent again, and is then accepted or its own
// number comes back. ended are the credentials that it takes back; the caller has
// looked whose they are.
func (s *Store) Report(ctx context.Context, r kbroker.ReportRequest, ended ...kbroker.Revocation) (kbroker.ReportReply, error) {
	msgs := make([]*nats.Msg, 0, len(r.Statuses)+len(r.Gone)+len(ended))
	msgs = append(msgs, revocations(ended, time.Now())...)
	for _, st := range r.Statuses {
		if st.Host != r.Host {
			return kbroker.ReportReply{}, kbroker.Errorf(kbroker.Invalid, "host %s reports %s of host %q", r.Host, st.Instance, st.Host)
		}
		m := newRecord(subjects.Status(subjects.KeyStatus(st.Host, st.Tenant, st.Instance)), st)
		if st.State == kbroker.StateExited {
			m.Header.Set(jetstream.MsgTTLHeader, statusTTL.String())
		}
		msgs = append(msgs, m)
	}
	for _, k := range r.Gone {
		if s.reports.exited(PlacementKey{r.Host, k.Tenant, k.Instance}) {
			continue // what has ended is listed until its time is over
		}
		msgs = append(msgs, newMarker(subjects.Status(subjects.KeyStatus(r.Host, k.Tenant, k.Instance))))
	}
	subject := subjects.Status(subjects.KeyReport(r.Host))
	for attempt := 1; ; attempt++ {
		stored, rev, err := s.storedReport(ctx, subject)
		if err != nil {
			return kbroker.ReportReply{}, err
		}
		next, later := stored.next(r)
		if !later {
			return kbroker.ReportReply{Number: stored.Number}, nil
		}
		err = s.writeReport(ctx, subject, rev, stored, next, msgs)
		switch c := code(err); {
		case err == nil:
			return kbroker.ReportReply{Accepted: true, Number: r.Number}, nil
		case (c == codeWrongSequence || c == codeInFlight) && attempt <= reportRetries:
			sleep(ctx, commitPause)
		default:
			return kbroker.ReportReply{}, unavailable(err, "report %d of host %s", r.Number, r.Host)
		}
	}
}

// revocations are the records of credentials that were taken back, each of which goes
// from the stream when it says nothing any more: by the wall clock, as the credential's
// end is.
func revocations(all []kbroker.Revocation, now time.Time) []*nats.Msg {
	var msgs []*nats.Msg
	for _, r := range all {
		if left := r.Until.Sub(now); left > 0 {
			m := newRecord(subjects.Status(subjects.KeyRevoked(r.User)), r)
			m.Header.Set(jetstream.MsgTTLHeader, (min(left, revokedLongest) + revokedLonger).Round(time.Second).String())
			msgs = append(msgs, m)
		}
	}
	return msgs
}

// Revoke writes that credentials were taken back, in batches. Some of them may be
// written when it fails: Unavailable, the same may be written again.
func (s *Store) Revoke(ctx context.Context, all []kbroker.Revocation) error {
	for msgs := range slices.Chunk(revocations(all, time.Now()), batchMessages) {
		if _, err := publishBatch(ctx, s.js, msgs); err != nil {
			return unavailable(err, "write %d revocations", len(msgs))
		}
	}
	return nil
}

// writeReport writes msgs guarded by the report's record. Only the last batch
// raises the number: a report that was cut short is sent again as a whole.
func (s *Store) writeReport(ctx context.Context, subject string, rev uint64, stored, next reportRecord, msgs []*nats.Msg) error {
	for {
		n, number := len(msgs), next
		if n > batchMessages-1 {
			n, number = batchMessages-1, stored
		}
		guard := newRecord(subject, number)
		expect(guard, rev)
		last, err := publishBatch(ctx, s.js, append(slices.Clone(msgs[:n]), guard))
		if err != nil {
			return err
		}
		if msgs = msgs[n:]; len(msgs) == 0 && number == next {
			return nil
		}
		rev = last
	}
}

// storedReport reads the host's last accepted report from the stream's leader.
func (s *Store) storedReport(ctx context.Context, subject string) (reportRecord, uint64, error) {
	m, err := readLast(ctx, s.cfg.Conn, subjects.StatusStream, subject)
	if err != nil {
		return reportRecord{}, 0, unavailable(err, "read the last report")
	}
	if m == nil {
		return reportRecord{}, 0, nil
	}
	var r reportRecord
	if err := json.Unmarshal(m.data, &r); err != nil {
		return reportRecord{}, 0, fmt.Errorf("last report %s at revision %d is not readable: %w", subject, m.seq, err)
	}
	return r, m.seq, nil
}
