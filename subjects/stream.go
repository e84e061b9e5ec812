package subjects

import (
	"strings"

	"github.com/kbroker/kbroker"
)

// TagCore is the tag of servers that may hold streams. A clustered server
// without it (the witness) gets none.
const TagCore = "core"

const tagHostPrefix = "host-"

// TagHost is the tag that only one host's server has; a stream is pinned to the
// host by it.
func TagHost(h kbroker.HostID) string { return tagHostPrefix + string(h) }

// IsTagHost reports whether a tag pins a stream to one host.
func IsTagHost(tag string) bool { return strings.HasPrefix(tag, tagHostPrefix) }

const mirrorPrefix = "MIRROR_"

// MirrorOf is the stream that copies another to one host, while there are two
// cores. No host's name has an underscore.
func MirrorOf(stream string, host kbroker.HostID) string {
	return mirrorPrefix + string(host) + "_" + stream
}

// ParseMirror splits a name of MirrorOf; ok is false for all other streams.
func ParseMirror(name string) (stream string, host kbroker.HostID, ok bool) {
	rest, ok := strings.CutPrefix(name, mirrorPrefix)
	if !ok {
		return "", "", false
	}
	h, stream, ok := strings.Cut(rest, "_")
	if !ok || h == "" || stream == "" {
		return "", "", false
	}
	return stream, kbroker.HostID(h), true
}

// MirrorOrigin is the key of a mirror's metadata under which the configuration
// of the stream that it copies is kept, as JSON.
const MirrorOrigin = "kbroker.origin"

// CopiedUpTo is the key of a stream's metadata that has it keep its sequences when it is made
// again from a copy (a rescue), where that has no gaps. Up to this one they are then those of
// all streams that it was copied from; beyond it those had others, of which the copy lacked
// the messages. Empty: it is no copy.
const CopiedUpTo = "kbroker.copied"
