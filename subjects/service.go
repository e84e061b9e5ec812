package subjects

import (
	"strings"

	"github.com/kbroker/kbroker"
)

// Method is where requests to a method of a service go.
func Method(app kbroker.AppName, service kbroker.ServiceName, method string) string {
	return "svc." + string(app) + "." + string(service) + "." + method
}

// Methods are the subjects of all methods of a service, written <app>.<service>, or of
// several, with * for a name.
func Methods(service string) string { return "svc." + service + ".>" }

// AllMethods are the subjects of Method.
const AllMethods = "svc.>"

// CheckMethod reports why a method name is not one subject token, or nil.
func CheckMethod(method string) error {
	if method == "" || len(method) > 64 || strings.ContainsAny(method, ".*> \t\r\n") {
		return kbroker.Errorf(kbroker.Invalid, "method name %q is not valid", method).
			WithHint("1 to 64 bytes without a dot, a blank, * or >")
	}
	return nil
}

// Discovery is the prefix of NATS micro discovery.
const Discovery = "$SRV"

// Discoveries are the questions of NATS micro discovery.
var Discoveries = []string{Discovery + ".PING", Discovery + ".INFO", Discovery + ".STATS"}

// MicroName is the name under which a service is found by NATS micro discovery.
// The underscore is in no name, so two services never share one.
func MicroName(app kbroker.AppName, service kbroker.ServiceName) string {
	return string(app) + "_" + string(service)
}

// MicroID is the id of a process in NATS micro discovery: its incarnation as
// one token.
func MicroID(i kbroker.Incarnation) string { return strings.ReplaceAll(string(i), ".", "_") }
