package subjects_test

import (
	"testing"

	"github.com/kbroker/kbroker/subjects"
)

func TestWhatWasTakenOfAStream(t *testing.T) {
	s := subjects.StreamTaken("shop", "web", "tail", "shop-web-1.00112233aabbccdd", "f00d", 17)
	if want := "svc.shop.web.tail.shop-web-1_00112233aabbccdd.f00d.17"; s != want {
		t.Fatalf("%q, want %q", s, want)
	}
	prefix, stream, n, ok := subjects.ParseStreamTaken(s)
	if !ok || stream != "f00d" || n != 17 || prefix != s[:len(s)-2] {
		t.Errorf("parsed %q, %q, %d, %v", prefix, stream, n, ok)
	}
	for _, bad := range []string{"", "svc.shop.web.tail", "svc.shop.web.tail.p..1", "svc.shop.web.tail.p.s.x", "obj.shop.web.tail.p.s.1", s + ".1"} {
		if _, _, _, ok := subjects.ParseStreamTaken(bad); ok {
			t.Errorf("%q is taken for what was taken of a stream", bad)
		}
	}
}
