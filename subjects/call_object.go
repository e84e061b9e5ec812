package subjects

import (
	"strings"

	"github.com/kbroker/kbroker"
)

// ObjectMethod is where requests to a method of the objects of a kind go that are in a
// shard: its owner hears them. Which object is meant says HeaderObject: a subject for each
// would be one more for servers to look up and to remember with every call.
func ObjectMethod(app kbroker.AppName, s kbroker.Shard, kind kbroker.KindName, method string) string {
	return objectCalls + string(app) + "." + shardToken(s) + "." + string(kind) + "." + method
}

// ShardMethods are the subjects of ObjectMethod of a shard: what its owner subscribes.
func ShardMethods(app kbroker.AppName, s kbroker.Shard) string {
	return objectCalls + string(app) + "." + shardToken(s) + ".>"
}

// Shards are those of ShardMethods of all shards.
func Shards(app kbroker.AppName) string { return objectCalls + string(app) + ".>" }

// ObjectMethods are the subjects of ObjectMethod of an app; * for all apps.
func ObjectMethods(app kbroker.AppName) string { return objectCalls + string(app) + ".*.*.*" }

// KindMethod are the subjects of ObjectMethod of a method, whatever the shard.
func KindMethod(app kbroker.AppName, kind kbroker.KindName, method string) string {
	return objectCalls + string(app) + ".*." + string(kind) + "." + method
}

// AllObjectMethods are the subjects of ObjectMethod.
const AllObjectMethods = objectCalls + "*.*.*.*"

// What is stored of objects (Objects) begins with the same word, in another account, and
// has the name of an app, which is no number, where these have the shard.
const objectCalls = "obj."

// ParseObjectMethod splits a subject of ObjectMethod.
func ParseObjectMethod(subject string) (app kbroker.AppName, s kbroker.Shard, kind kbroker.KindName, method string, ok bool) {
	t := strings.Split(subject, ".")
	if len(t) != 5 || t[0]+"." != objectCalls || t[1] == "" || t[3] == "" || t[4] == "" {
		return "", 0, "", "", false
	}
	s, ok = parseShard(t[2])
	return kbroker.AppName(t[1]), s, kbroker.KindName(t[3]), t[4], ok
}
