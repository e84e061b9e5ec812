package subjects

import (
	"strings"

	"github.com/kbroker/kbroker"
)

// Topic is where the events of an app's topic are heard.
func Topic(app kbroker.AppName, topic string) string { return "evt." + string(app) + "." + topic }

// Topics are the subjects of all topics written <app>.<topic>, with * for a name.
func Topics(topic string) string { return "evt." + topic }

// QueueTopic is the group of the instances of a service of which one hears an event.
func QueueTopic(app kbroker.AppName, service kbroker.ServiceName) string {
	return MicroName(app, service)
}

// Verbs of TopicAsk.
const (
	VerbTopicPublish = "publish"
	VerbTopicRead    = "read"
)

// TopicAsk is where a start of an instance has an event of a topic stored, or reads those
// that are; any core answers. Servers let nobody ask as another.
func TopicAsk(t kbroker.TenantID, a kbroker.AppName, topic, verb string, i kbroker.Incarnation) string {
	return TopicAskOf(t, string(a)+"."+topic, verb, i)
}

// TopicAskOf are the subjects of TopicAsk of a topic written <app>.<topic>, or of several,
// with * for a name.
func TopicAskOf(t kbroker.TenantID, topic, verb string, i kbroker.Incarnation) string {
	return "kb.topic." + string(t) + "." + topic + "." + verb + "." + string(i)
}

// AllTopicAsks are the subjects of TopicAsk.
const AllTopicAsks = "kb.topic.*.*.*.*.*.*"

// ParseTopicAsk splits a subject of TopicAsk.
func ParseTopicAsk(subject string) (t kbroker.TenantID, a kbroker.AppName, topic, verb string, i kbroker.Incarnation, ok bool) {
	s := strings.Split(subject, ".")
	if len(s) != 8 || s[0] != "kb" || s[1] != "topic" || s[2] == "" || s[3] == "" || s[4] == "" || s[5] == "" || s[6] == "" || s[7] == "" {
		return "", "", "", "", "", false
	}
	return kbroker.TenantID(s[2]), kbroker.AppName(s[3]), s[4], s[5], kbroker.Incarnation(s[6] + "." + s[7]), true
}

// TopicStream is the stream of the events of an app's topics that are stored; the names it
// is made of contain no underscore.
func TopicStream(t kbroker.TenantID, a kbroker.AppName) (stream, all string) {
	return "EVT_" + string(t) + "_" + string(a), storedEventsPrefix(t, a) + ">"
}

// StoredEvents are the events of a topic in TopicStream, StoredEvent those of one sender.
func StoredEvents(t kbroker.TenantID, a kbroker.AppName, topic string) string {
	return storedEventsPrefix(t, a) + topic + ".*"
}

func StoredEvent(t kbroker.TenantID, a kbroker.AppName, topic, from string) string {
	return storedEventsPrefix(t, a) + topic + "." + from
}

func storedEventsPrefix(t kbroker.TenantID, a kbroker.AppName) string {
	return "evs." + string(t) + "." + string(a) + "."
}

// ParseStoredEvent splits a subject of StoredEvent.
func ParseStoredEvent(subject string) (t kbroker.TenantID, a kbroker.AppName, topic, from string, ok bool) {
	s := strings.Split(subject, ".")
	if len(s) != 5 || s[0] != "evs" || s[1] == "" || s[2] == "" || s[3] == "" || s[4] == "" {
		return "", "", "", "", false
	}
	return kbroker.TenantID(s[1]), kbroker.AppName(s[2]), s[3], s[4], true
}
