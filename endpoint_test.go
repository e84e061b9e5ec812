package kbroker_test

import (
	"testing"

	"github.com/kbroker/kbroker"
)

func TestAnEndpointCanBeDialled(t *testing.T) {
	for address, want := range map[string]string{"10.0.0.1": "10.0.0.1:8080", "fd00::1": "[fd00::1]:8080"} {
		if got := (kbroker.Endpoint{Address: address, Number: 8080}).Addr(); got != want {
			t.Errorf("%s is dialled as %s, want %s", address, got, want)
		}
	}
}
