package subjects_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func TestMirrorNamesAreParsedBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		host := name[kbroker.HostID](t, "host")
		stream := rapid.StringMatching(`[A-Za-z0-9_-]{1,20}`).Draw(t, "stream")
		mirror := subjects.MirrorOf(stream, host)
		if s, h, ok := subjects.ParseMirror(mirror); !ok || s != stream || h != host {
			t.Errorf("ParseMirror(%q) = %q, %q, %t, want %q, %q", mirror, s, h, ok, stream, host)
		}
	})
}

func TestStreamsOfTheSystemAreNoMirrors(t *testing.T) {
	own, _ := subjects.Ownership("default", "mirror")
	for _, name := range []string{subjects.ControlStream, subjects.StatusStream, own, subjects.Artifacts("default"), "MIRROR_", "MIRROR_a", "MIRROR__x", "MIRROR_a_"} {
		if s, h, ok := subjects.ParseMirror(name); ok {
			t.Errorf("ParseMirror(%q) = %q, %q, want no mirror", name, s, h)
		}
	}
	if !subjects.IsTagHost(subjects.TagHost("a")) || subjects.IsTagHost(subjects.TagCore) {
		t.Error("the tag of a host is not told from the tag of all cores")
	}
}
