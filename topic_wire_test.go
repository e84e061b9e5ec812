package kbroker_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

func TestAnEventToStoreComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := kbroker.TopicPublishRequest{
			From: rapid.StringMatching(`[A-Za-z0-9-][A-Za-z0-9_-]{0,63}`).Draw(t, "from"), Number: rapid.Uint64Min(1).Draw(t, "number"),
			Last: rapid.Uint64().Draw(t, "last"), Again: rapid.Bool().Draw(t, "again"), Event: rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "event"),
		}
		data, err := r.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got kbroker.TopicPublishRequest
		if err := got.UnmarshalBinary(data); err != nil || string(got.Event) != string(r.Event) {
			t.Fatalf("%+v comes back as %+v: %v", r, got, err)
		}
		if got.Event, r.Event = nil, nil; fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", r) {
			t.Fatalf("%+v comes back as %+v", r, got)
		}
	})
}

func TestAnEventToStoreHasBounds(t *testing.T) {
	for name, c := range map[string]struct {
		r  kbroker.TopicPublishRequest
		ok bool
	}{
		"one":                            {kbroker.TopicPublishRequest{From: "a", Number: 1, Event: []byte("x")}, true},
		"an empty one":                   {kbroker.TopicPublishRequest{From: "A-_9", Number: 1}, true},
		"the largest one":                {kbroker.TopicPublishRequest{From: strings.Repeat("a", kbroker.MaxTopicFromBytes), Number: 1, Event: make([]byte, kbroker.MaxTopicEventBytes)}, true},
		"one that is too large":          {kbroker.TopicPublishRequest{From: "a", Number: 1, Event: make([]byte, kbroker.MaxTopicEventBytes+1)}, false},
		"without a number":               {kbroker.TopicPublishRequest{From: "a"}, false},
		"without a sender":               {kbroker.TopicPublishRequest{Number: 1}, false},
		"a sender that is too long":      {kbroker.TopicPublishRequest{From: strings.Repeat("a", kbroker.MaxTopicFromBytes+1), Number: 1}, false},
		"a sender of two tokens":         {kbroker.TopicPublishRequest{From: "a.b", Number: 1}, false},
		"a sender that is a wildcard":    {kbroker.TopicPublishRequest{From: "*", Number: 1}, false},
		"a sender that is all wildcards": {kbroker.TopicPublishRequest{From: ">", Number: 1}, false},
		"a sender with a blank":          {kbroker.TopicPublishRequest{From: "a b", Number: 1}, false},
		"an escaped sender":              {kbroker.TopicPublishRequest{From: "%41", Number: 1}, false},
		"the sender of marks":            {kbroker.TopicPublishRequest{From: "_", Number: 1}, false},
	} {
		data, err := c.r.MarshalBinary()
		if (err == nil) != c.ok || err != nil && !errors.Is(err, kbroker.Invalid) || len(data) > 1<<20 {
			t.Errorf("%s: %v in %d bytes, want it allowed: %t", name, err, len(data), c.ok)
		}
	}
	for name, c := range map[string]struct {
		r  kbroker.TopicReadRequest
		ok bool
	}{
		"all":            {kbroker.TopicReadRequest{}, true},
		"the most":       {kbroker.TopicReadRequest{After: 7, Stream: 8, Limit: kbroker.MaxTopicEvents, Bytes: kbroker.MaxTopicPageBytes}, true},
		"the end":        {kbroker.TopicReadRequest{End: true}, true},
		"too many":       {kbroker.TopicReadRequest{Limit: kbroker.MaxTopicEvents + 1}, false},
		"less than none": {kbroker.TopicReadRequest{Limit: -1}, false},
		"too much":       {kbroker.TopicReadRequest{Bytes: kbroker.MaxTopicPageBytes + 1}, false},
		"negative bytes": {kbroker.TopicReadRequest{Bytes: -1}, false},
	} {
		if err := c.r.Check(); (err == nil) != c.ok || err != nil && !errors.Is(err, kbroker.Invalid) {
			t.Errorf("to read %s: %v, want it allowed: %t", name, err, c.ok)
		}
	}
}

func TestEventsThatAreReadComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := kbroker.TopicReadReply{Last: rapid.Uint64().Draw(t, "last"), First: rapid.Uint64().Draw(t, "first"), Stream: rapid.Uint64().Draw(t, "stream")}
		for i := range rapid.IntRange(0, 5).Draw(t, "events") {
			r.Events = append(r.Events, kbroker.TopicEvent{
				Sequence: uint64(i) + 1, At: time.Unix(0, rapid.Int64Range(0, 1<<60).Draw(t, "at")).UTC(), Data: rapid.SliceOfN(rapid.Byte(), 1, 50).Draw(t, "data"),
			})
		}
		data, err := r.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got kbroker.TopicReadReply
		if err := got.UnmarshalBinary(data); err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", r) {
			t.Fatalf("%+v comes back as %+v: %v", r, got, err)
		}
	})
	full := kbroker.TopicReadReply{Events: make([]kbroker.TopicEvent, kbroker.MaxTopicEvents), Last: 1 << 62, First: 1 << 62, Stream: 1 << 62}
	for i := range full.Events {
		full.Events[i] = kbroker.TopicEvent{Sequence: 1 << 62, At: time.Now().UTC(), Data: make([]byte, kbroker.MaxTopicPageBytes/kbroker.MaxTopicEvents)}
	}
	data, err := full.MarshalBinary()
	if err == nil {
		err = new(kbroker.TopicReadReply).UnmarshalBinary(data)
	}
	if err != nil || len(data) > 1<<20 {
		t.Errorf("the largest answer has %d bytes: %v", len(data), err)
	}
}

func FuzzTopicPublishRequest(f *testing.F) {
	good, _ := kbroker.TopicPublishRequest{From: "a", Number: 3, Last: 7, Again: true, Event: []byte("x\ny")}.MarshalBinary()
	for _, s := range []string{"", "\n", "{}\n", string(good), string(good) + "x", string(good[:len(good)-1]), `{"from":"a","number":1,"size":-1}` + "\n", `{"from":"a","number":-1}` + "\n", "null\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r kbroker.TopicPublishRequest
		if err := r.UnmarshalBinary(data); err != nil {
			if !errors.Is(err, kbroker.Invalid) {
				t.Fatalf("%v, want it invalid", err)
			}
			return
		}
		again, err := r.MarshalBinary()
		if err != nil {
			t.Fatalf("%+v is decoded and not encoded: %v", r, err)
		}
		var same kbroker.TopicPublishRequest
		if err := same.UnmarshalBinary(again); err != nil || fmt.Sprintf("%+v", same) != fmt.Sprintf("%+v", r) {
			t.Fatalf("%+v comes back as %+v: %v", r, same, err)
		}
	})
}

func FuzzTopicReadReply(f *testing.F) {
	good, _ := kbroker.TopicReadReply{Events: []kbroker.TopicEvent{{Sequence: 3, Data: []byte("x\ny")}, {Sequence: 9}}, Last: 12, First: 1, Stream: 5}.MarshalBinary()
	for _, s := range []string{"", "\n", "{}\n", string(good), string(good) + "x", string(good[:len(good)-1]), `{"events":[{"size":-1}]}` + "\n", `{"events":[null]}` + "\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r kbroker.TopicReadReply
		if err := r.UnmarshalBinary(data); err != nil {
			if !errors.Is(err, kbroker.Invalid) {
				t.Fatalf("%v, want it invalid", err)
			}
			return
		}
		again, err := r.MarshalBinary()
		if err != nil {
			t.Fatalf("%+v is decoded and not encoded: %v", r, err)
		}
		var same kbroker.TopicReadReply
		if err := same.UnmarshalBinary(again); err != nil || fmt.Sprintf("%+v", same) != fmt.Sprintf("%+v", r) {
			t.Fatalf("%+v comes back as %+v: %v", r, same, err)
		}
	})
}
