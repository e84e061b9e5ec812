package main

import (
	"encoding/json"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// endpoints is where hello listens, on http; duo listens nowhere yet.
func (f *fakeCore) endpoints(m *nats.Msg) (any, error) {
	var r kbroker.EndpointsRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, err
	}
	_, app, service, ok := subjects.ParseEndpoints(m.Subject)
	switch {
	case !ok:
		return nil, kbroker.Errorf(kbroker.Invalid, "subject %q", m.Subject)
	case app == "duo":
		return []kbroker.Endpoint{}, nil
	case app != "hello" || service != "hello":
		return nil, kbroker.Errorf(kbroker.NotFound, "there is no service %s/%s", app, service)
	case r.Port != "" && r.Port != "http":
		return nil, kbroker.Errorf(kbroker.NotFound, "service %s/%s has no port %q", app, service, r.Port)
	}
	return []kbroker.Endpoint{
		{Instance: "hello-hello-1", Host: "h1", Address: "10.0.0.1", Port: "http", Number: 20000, Ready: true},
		{Instance: "hello-hello-2", Host: "h2", Address: "fd00::2", Port: "http", Number: 20001},
	}, nil
}
