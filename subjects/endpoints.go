package subjects

import (
	"strings"

	"github.com/kbroker/kbroker"
)

const endpointsPrefix = "kb.endpoints."

// Endpoints is where is asked, of any core, where the instances of a service listen. Who
// may call the service may ask: servers let nobody else.
func Endpoints(t kbroker.TenantID, a kbroker.AppName, s kbroker.ServiceName) string {
	return EndpointsOf(t, string(a)+"."+string(s))
}

// EndpointsOf are the subjects of Endpoints of a service, written <app>.<service>, or of
// several, with * for a name.
func EndpointsOf(t kbroker.TenantID, service string) string {
	return endpointsPrefix + string(t) + "." + service
}

// AllEndpoints are the subjects of Endpoints.
const AllEndpoints = endpointsPrefix + "*.*.*"

// ParseEndpoints splits a subject of Endpoints.
func ParseEndpoints(subject string) (t kbroker.TenantID, a kbroker.AppName, s kbroker.ServiceName, ok bool) {
	rest, ok := strings.CutPrefix(subject, endpointsPrefix)
	names := strings.Split(rest, ".")
	if !ok || len(names) != 3 || names[0] == "" || names[1] == "" || names[2] == "" {
		return "", "", "", false
	}
	return kbroker.TenantID(names[0]), kbroker.AppName(names[1]), kbroker.ServiceName(names[2]), true
}
