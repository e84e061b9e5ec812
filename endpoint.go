package kbroker

import (
	"strconv"
	"strings"
)

// MaxEndpoints bounds the endpoints in one answer: those that are ready come first.
const MaxEndpoints = 1000

// EndpointsRequest asks a core where the instances of a service listen, on
// subjects.Endpoints. The answer is a list of Endpoint, sorted by readiness, instance and
// port. NotFound: there is no such service, or it has no such port.
type EndpointsRequest struct {
	Port string `json:"port,omitempty"` // the name of one; empty: of all
}

// Endpoint is where an instance of a service listens.
type Endpoint struct {
	Instance InstanceID `json:"instance"`
	Host     HostID     `json:"host"`
	Address  string     `json:"address"` // of the host: an IP
	Port     string     `json:"port"`    // its name
	Number   int        `json:"number"`
	// Ready: its agent is there and said so.
	Ready bool `json:"ready"`
}

// Addr is what to dial: address and number.
func (e Endpoint) Addr() string {
	ip := e.Address
	if strings.Contains(ip, ":") { // version 6
		ip = "[" + ip + "]"
	}
	return ip + ":" + strconv.Itoa(e.Number)
}
