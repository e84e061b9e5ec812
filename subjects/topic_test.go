package subjects_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func TestSubjectsOfTopicsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenant, app, topic, verb := name[kbroker.TenantID](t, "tenant"), name[kbroker.AppName](t, "app"), name[string](t, "topic"), name[string](t, "verb")
		i := kbroker.Incarnation(string(app) + "-web-7.00ff")
		s := subjects.TopicAsk(tenant, app, topic, verb, i)
		if gotTenant, gotApp, gotTopic, gotVerb, got, ok := subjects.ParseTopicAsk(s); !ok || gotTenant != tenant || gotApp != app || gotTopic != topic || gotVerb != verb || got != i {
			t.Fatalf("ParseTopicAsk(%q) = %q, %q, %q, %q, %q, %t", s, gotTenant, gotApp, gotTopic, gotVerb, got, ok)
		}
		for _, all := range []string{subjects.AllTopicAsks, subjects.TopicAsk(tenant, app, "*", verb, i), subjects.TopicAskOf(tenant, "*.*", verb, i)} {
			if !matches(all, s) {
				t.Fatalf("%q does not match %q", all, s)
			}
		}
		from := rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`).Draw(t, "from")
		stored := subjects.StoredEvent(tenant, app, topic, from)
		if gotTenant, gotApp, gotTopic, gotFrom, ok := subjects.ParseStoredEvent(stored); !ok || gotTenant != tenant || gotApp != app || gotTopic != topic || gotFrom != from {
			t.Fatalf("ParseStoredEvent(%q) = %q, %q, %q, %q, %t", stored, gotTenant, gotApp, gotTopic, gotFrom, ok)
		}
		if _, all := subjects.TopicStream(tenant, app); !matches(all, stored) || !matches(subjects.StoredEvents(tenant, app, topic), stored) {
			t.Fatalf("%q is not among the stored events of %s/%s", stored, app, topic)
		}
		if other := subjects.StoredEvents(tenant, app, topic+"x"); matches(other, stored) {
			t.Fatalf("%q is among those of another topic, %q", stored, other)
		}
		if heard := subjects.Topic(app, topic); matches(heard, stored) {
			t.Fatalf("what is stored, %q, is heard as %q", stored, heard)
		}
	})
	for _, s := range []string{"", "kb.topic.t.a.x.read.i", "kb.topic.t.a.x.read.i.s.y", "kb.topic..a.x.read.i.s", "kb.topic.t..x.read.i.s", "kb.topic.t.a..read.i.s", "kb.topic.t.a.x..i.s", "kb.topic.t.a.x.read..s", "kb.topic.t.a.x.read.i.", "kb.own.t.a.x.read.i.s"} {
		if _, _, _, _, i, ok := subjects.ParseTopicAsk(s); ok {
			t.Errorf("ParseTopicAsk(%q) is of %q, want none", s, i)
		}
	}
	for _, s := range []string{"", "evs.t.a.x", "evs.t.a.x.f.y", "evs..a.x.f", "evs.t..x.f", "evs.t.a..f", "evs.t.a.x.", "evt.t.a.x.f"} {
		if _, _, topic, _, ok := subjects.ParseStoredEvent(s); ok {
			t.Errorf("ParseStoredEvent(%q) is of topic %q, want none", s, topic)
		}
	}
}
