package subjects

import (
	"slices"
	"strconv"
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

// StreamTaken is where the one process that serves a stream hears that its first n items
// were taken: below the method, so that who may call it may say so.
func StreamTaken(app kbroker.AppName, service kbroker.ServiceName, method string, i kbroker.Incarnation, stream string, n uint64) string {
	return Method(app, service, method) + "." + MicroID(i) + "." + stream + "." + strconv.FormatUint(n, 10)
}

// StreamsTaken are the subjects of StreamTaken of all streams of a process.
func StreamsTaken(app kbroker.AppName, service kbroker.ServiceName, method string, i kbroker.Incarnation) string {
	return Method(app, service, method) + "." + MicroID(i) + ".*.*"
}

// ParseStreamTaken splits a subject of StreamTaken: prefix is all of it but n, with the last
// dot.
func ParseStreamTaken(subject string) (prefix, stream string, n uint64, ok bool) {
	t := strings.Split(subject, ".")
	if len(t) != 7 || t[0] != "svc" || slices.Contains(t, "") {
		return "", "", 0, false
	}
	n, err := strconv.ParseUint(t[6], 10, 64)
	return subject[:len(subject)-len(t[6])], t[5], n, err == nil
}

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
