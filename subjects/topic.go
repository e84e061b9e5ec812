package subjects

import "github.com/kbroker/kbroker"

// Topic is where the events of an app's topic are heard.
func Topic(app kbroker.AppName, topic string) string { return "evt." + string(app) + "." + topic }

// Topics are the subjects of all topics written <app>.<topic>, with * for a name.
func Topics(topic string) string { return "evt." + topic }

// QueueTopic is the group of the instances of a service of which one hears an event.
func QueueTopic(app kbroker.AppName, service kbroker.ServiceName) string {
	return MicroName(app, service)
}
