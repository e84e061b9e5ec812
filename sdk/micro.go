package sdk

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/kbroker/kbroker/subjects"
)

// discoverable answers the NATS micro protocol: `nats micro ls|info|stats` and
// every NATS client find the service. nats.go's own micro.AddService is not
// used: it decides itself when to leave the queue group and has no bound on
// running handlers. Its message types are.
func (a *App) discoverable(t transport) error {
	answers := map[micro.Verb]func() any{
		micro.PingVerb:  func() any { return micro.Ping{ServiceIdentity: a.micro(), Type: micro.PingResponseType} },
		micro.InfoVerb:  func() any { return a.microInfo() },
		micro.StatsVerb: func() any { return a.microStats() },
	}
	id := a.micro()
	for verb, answer := range answers {
		for _, who := range [][2]string{{"", ""}, {id.Name, ""}, {id.Name, id.ID}} {
			subject, err := micro.ControlSubject(verb, who[0], who[1])
			if err != nil {
				return fmt.Errorf("discovery subject: %w", err)
			}
			if _, err := t.subscribe(subject, "", func(m *nats.Msg) { a.discovered(t, m, answer()) }); err != nil {
				return fmt.Errorf("subscribe %s: %w", subject, err)
			}
		}
	}
	return nil
}

func (a *App) discovered(t transport, m *nats.Msg, answer any) {
	b, err := json.Marshal(answer)
	if err != nil || !subjects.IsInbox(m.Reply) {
		return
	}
	if err := t.publish(&nats.Msg{Subject: m.Reply, Data: b}); err != nil {
		a.log.Warn("discovery not answered", "err", err)
	}
}

func (a *App) micro() micro.ServiceIdentity {
	i := &a.identity
	return micro.ServiceIdentity{
		Name:    subjects.MicroName(i.App, i.Service),
		ID:      subjects.MicroID(i.Incarnation),
		Version: strconv.Itoa(i.Version) + ".0.0",
		Metadata: map[string]string{
			"app": string(i.App), "service": string(i.Service), "instance": string(i.Instance),
			"incarnation": string(i.Incarnation), "host": string(i.Host),
		},
	}
}

func (a *App) microInfo() micro.Info {
	info := micro.Info{ServiceIdentity: a.micro(), Type: micro.InfoResponseType, Endpoints: []micro.EndpointInfo{}}
	for _, m := range a.methods {
		info.Endpoints = append(info.Endpoints, micro.EndpointInfo{
			Name: m.name, Subject: m.subject(), QueueGroup: subjects.QueueService,
			Metadata: map[string]string{metaIdempotent: strconv.FormatBool(m.idempotent)},
		})
	}
	for _, k := range a.kinds {
		for _, m := range k.order {
			info.Endpoints = append(info.Endpoints, micro.EndpointInfo{
				Name: m.endpoint(), Subject: m.subject(a),
				Metadata: map[string]string{metaIdempotent: strconv.FormatBool(m.readOnly), metaObject: string(k.name), metaDurable: durability(k.durable)},
			})
		}
	}
	return info
}

func (a *App) microStats() micro.Stats {
	all := micro.Stats{ServiceIdentity: a.micro(), Type: micro.StatsResponseType, Started: a.started.UTC(), Endpoints: []*micro.EndpointStats{}}
	add := func(name, subject, queue string, s methodStats) {
		e := &micro.EndpointStats{
			Name: name, Subject: subject, QueueGroup: queue,
			NumRequests: s.requests, NumErrors: s.errors, LastError: s.lastError, ProcessingTime: s.busy,
		}
		if s.requests > 0 {
			e.AverageProcessingTime = s.busy / time.Duration(s.requests)
		}
		all.Endpoints = append(all.Endpoints, e)
	}
	for _, m := range a.methods {
		add(m.name, m.subject(), subjects.QueueService, m.counted())
	}
	for _, m := range a.objectMethods() {
		add(m.endpoint(), m.subject(a), "", m.counted())
	}
	return all
}

// counted are the requests of all methods, how many of them ended with an error, and how
// many of those were refused as a method was at its bound.
func (a *App) counted() (requests, errs, refused uint64) {
	add := func(s methodStats) {
		requests, errs, refused = requests+uint64(s.requests), errs+uint64(s.errors), refused+uint64(s.refused)
	}
	for _, m := range a.methods {
		add(m.counted())
	}
	for _, m := range a.objectMethods() {
		add(m.counted())
	}
	return requests, errs, refused
}

// objectMethods are those of all kinds.
func (a *App) objectMethods() []*objectMethod {
	var all []*objectMethod
	for _, k := range a.kinds {
		all = append(all, k.order...)
	}
	return all
}

// endpoint is the method's name in discovery, subject the subjects of all shards.
func (m *objectMethod) endpoint() string { return string(m.kind) + "-" + m.name }

func (m *objectMethod) subject(a *App) string {
	return subjects.KindMethod(a.identity.App, m.kind, m.name)
}

func (m *objectMethod) counted() methodStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

func (m *method) counted() methodStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}
