package client

import (
	"context"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Endpoints says where the instances of a service listen, those that are ready first, on
// the port of a name (empty: on all). Never nil. Errors: NotFound - there is no such
// service or port; Refused - this side may not call the service.
func (c *Client) Endpoints(ctx context.Context, app kbroker.AppName, service kbroker.ServiceName, port string) ([]kbroker.Endpoint, error) {
	rows := []kbroker.Endpoint{}
	q := c.readOf("")
	q.subject = subjects.Endpoints(c.tenant, app, service)
	return rows, c.ask(ctx, q, kbroker.EndpointsRequest{Port: port}, &rows)
}
