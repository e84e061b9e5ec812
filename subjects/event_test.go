package subjects_test

import (
	"strings"
	"testing"

	"github.com/kbroker/kbroker/subjects"
)

func TestEventSubjects(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{subjects.Event("default", "shop", "shop-web-1"), "event.default.shop.shop-web-1"},
		{subjects.Event("default", "shop", ""), "event.default.shop._"},
		{subjects.Event("", "", ""), "event._._._"},
		{subjects.EventsOf("default", "shop", "shop-web-1"), "event.default.shop.shop-web-1"},
		{subjects.EventsOf("default", "shop", ""), "event.default.shop.*"},
		{subjects.EventsOf("default", "", ""), "event.default.*.*"},
	} {
		if tc.got != tc.want {
			t.Errorf("subject is %s, want %s", tc.got, tc.want)
		}
		if !strings.HasPrefix(tc.got, strings.TrimSuffix(subjects.EventAll, ">")) {
			t.Errorf("subject %s is not in the stream's %s", tc.got, subjects.EventAll)
		}
	}
}
