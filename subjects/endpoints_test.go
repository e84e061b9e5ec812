package subjects_test

import (
	"testing"

	"github.com/kbroker/kbroker/subjects"
)

func TestEndpointsAreThoseOfAService(t *testing.T) {
	s := subjects.Endpoints("default", "shop", "web")
	tenant, app, service, ok := subjects.ParseEndpoints(s)
	if !ok || tenant != "default" || app != "shop" || service != "web" {
		t.Errorf("%q is of %q, %q, %q, %t", s, tenant, app, service, ok)
	}
	for _, of := range []string{subjects.AllEndpoints, subjects.EndpointsOf("default", "shop.*"), subjects.EndpointsOf("default", "*.*")} {
		if !matches(of, s) {
			t.Errorf("%q is not in %q", s, of)
		}
	}
	for _, bad := range []string{"", "kb.endpoints", "kb.endpoints.default.shop", "kb.endpoints.default.shop.web.x", "kb.endpoints.default..web", "kb.core.default.shop.web"} {
		if _, _, _, ok := subjects.ParseEndpoints(bad); ok {
			t.Errorf("%q is taken for one", bad)
		}
	}
}
