package subjects_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// id draws any that an object may have.
func id(t *rapid.T, what string) string {
	return rapid.OneOf(
		rapid.StringN(1, 40, kbroker.MaxObjectIDBytes),
		rapid.SampledFrom([]string{"alice", "a.b", "*", ">", "%", "%41", " ", "\x00", "a/b:c", "Größe", "日本", strings.Repeat(".", kbroker.MaxObjectIDBytes)}),
	).Draw(t, what)
}

func object(t *rapid.T) kbroker.Object {
	return kbroker.Object{Kind: name[kbroker.KindName](t, "kind"), ID: id(t, "id"), Placed: rapid.Bool().Draw(t, "placed")}
}

func TestKeysOfObjectsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenant, app, o := name[kbroker.TenantID](t, "tenant"), name[kbroker.AppName](t, "app"), object(t)
		shard, n, reminder := o.Shard(), rapid.Uint64().Draw(t, "number"), id(t, "reminder")
		start := kbroker.Incarnation(string(app) + "-web-7." + rapid.StringMatching(`[0-9a-f]{1,16}`).Draw(t, "start"))
		streams := rapid.SampledFrom([]int{1, 4, 16}).Draw(t, "streams")
		own, owned := subjects.Ownership(tenant, app)
		obj, objs := subjects.Objects(tenant, app, int(shard)%streams)
		for key, want := range map[string]subjects.OwnKey{
			subjects.KeyAllocatorLease:   {Table: subjects.OwnAllocatorLease},
			subjects.KeyOwnershipHead:    {Table: subjects.OwnHead},
			subjects.KeyLease(start):     {Table: subjects.OwnLease, Incarnation: start},
			subjects.KeyAssign(shard):    {Table: subjects.OwnAssign, Shard: shard},
			subjects.KeyRelease(shard):   {Table: subjects.OwnRelease, Shard: shard},
			subjects.KeyState(o):         {Table: subjects.OwnState, Shard: shard, Object: o},
			subjects.KeyOut(o, n):        {Table: subjects.OwnOut, Shard: shard, Object: o, Number: n},
			subjects.KeyDue(o, reminder): {Table: subjects.OwnDue, Shard: shard, Object: o, Name: reminder},
		} {
			if got := subjects.ParseOwnKey(key); got != want {
				t.Fatalf("ParseOwnKey(%q) = %+v, want %+v", key, got, want)
			}
			if len(key) > kbroker.MaxKeyBytes || (kbroker.OwnReadRequest{Keys: []string{key}}).Check() != nil {
				t.Fatalf("%q is too long for a request, or not a key to it", key)
			}
			inStream, all := own, owned
			if want.OfObject() {
				inStream, all = obj, objs
			}
			stream, prefix, ok := subjects.StoredAt(tenant, app, streams, key)
			if !ok || stream != inStream || !matches(all, prefix+key) {
				t.Fatalf("%q is stored at %s in %s, %t, want in %s of %s", key, prefix+key, stream, ok, inStream, all)
			}
			if want.OfObject() {
				continue
			}
			for _, s := range []string{prefix + key, subjects.Owned(tenant, app, key)} {
				if gotTenant, gotApp, got, ok := subjects.OwnershipKey(s); !ok || gotTenant != tenant || gotApp != app || got != key {
					t.Fatalf("OwnershipKey(%q) = %q, %q, %q, %t", s, gotTenant, gotApp, got, ok)
				}
			}
		}
		for match, key := range map[string]string{
			subjects.MatchStates(shard): subjects.KeyState(o), subjects.MatchOuts(shard): subjects.KeyOut(o, n), subjects.MatchDues(shard): subjects.KeyDue(o, reminder),
			subjects.MatchLeases: subjects.KeyLease(start), matchOf(subjects.MatchAssigns, subjects.MatchPlaced(), shard): subjects.KeyAssign(shard),
			matchOf(subjects.MatchReleases, subjects.MatchPlacedReleases(), shard): subjects.KeyRelease(shard),
		} {
			stream, prefix, ok := subjects.StoredAt(tenant, app, streams, match)
			if of, at, _ := subjects.StoredAt(tenant, app, streams, key); !ok || stream != of || prefix != at || !matches(match+".>", key) {
				t.Fatalf("%q is below %q: in %s, %t", key, match, stream, ok)
			}
		}
	})
}

// matchOf is the one that finds a shard: of placed objects one of several.
func matchOf(shards string, placed []string, s kbroker.Shard) string {
	if s.OfOne() {
		return placed[int(s)%len(placed)]
	}
	return shards
}

func TestParseOwnKeyDoesNotGuess(t *testing.T) {
	alice := subjects.KeyState(kbroker.Object{Kind: "account", ID: "alice"}) // 257
	for _, key := range []string{
		"", ".", "lease", "lease.", "lease.x", "lease.a.b.c", "lease.*.b", "lease.A.b", "assign", "assign.", "assign.1024", "assign.-1", "assign.01", "assign.+1",
		"assign.1.x", "assign.0.1024", "placed.3", "placed.0.3", "placed.1.1024", "placed.0.1024.x", "placed.00.1024", "placed.0.9007199254740992", "left.1.1024", "release", "release.x", "head.x", "x",
		"256.state.account.alice", "0257.state.account.alice", alice + ".x", "257.state.account", "257.state.account.", "257.x.account.alice", "257", "257.out.account.alice",
		"257.out.account.alice.01", "257.out.account.alice.-1", "257.out.account.alice.18446744073709551616", "257.out.account.alice.1.x", "257.due.account.alice", "257.due.account.alice.", "257.due.account.alice.%", "1024.state.account.alice",
	} {
		if got := subjects.ParseOwnKey(key); got != (subjects.OwnKey{}) {
			t.Errorf("ParseOwnKey(%q) = %+v, want OwnUnknown", key, got)
		}
	}
	for _, key := range []string{"", "x", "head.x", "9007199254740993.state", "-1", "01.state"} {
		if stream, _, ok := subjects.StoredAt("default", "shop", 4, key); ok {
			t.Errorf("%q is stored in %s, want nowhere", key, stream)
		}
	}
	if stream, _, ok := subjects.StoredAt("default", "shop", 0, alice); ok {
		t.Errorf("without streams %q is stored in %s", alice, stream)
	}
}

func TestOwnSubjectsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenant, app, verb := name[kbroker.TenantID](t, "tenant"), name[kbroker.AppName](t, "app"), name[string](t, "verb")
		i := kbroker.Incarnation(string(app) + "-web-7.00ff")
		s := subjects.Own(tenant, app, verb, i)
		if gotTenant, gotApp, gotVerb, got, ok := subjects.ParseOwn(s); !ok || gotTenant != tenant || gotApp != app || gotVerb != verb || got != i {
			t.Fatalf("ParseOwn(%q) = %q, %q, %q, %q, %t", s, gotTenant, gotApp, gotVerb, got, ok)
		}
	})
	for _, s := range []string{"", "kb.own.t.a.read.i", "kb.own.t.a.read.i.s.x", "kb.own..a.read.i.s", "kb.own.t..read.i.s", "kb.own.t.a..i.s", "kb.own.t.a.read..s", "kb.own.t.a.read.i.", "kb.owned.t.a.read.i.s"} {
		if _, _, _, i, ok := subjects.ParseOwn(s); ok {
			t.Errorf("ParseOwn(%q) is of %q, want none", s, i)
		}
	}
	for _, s := range []string{"", "own.t.a", "own.t.a.", "own..a.k", "own.t..k", "kb.own.t.a.k", "obj.t.a.0.k"} {
		if _, _, key, ok := subjects.OwnershipKey(s); ok {
			t.Errorf("OwnershipKey(%q) = %q, want none", s, key)
		}
	}
}

// An id that is escaped is one token, and it comes back; what is no escaped id does not.
func FuzzEscapeID(f *testing.F) {
	for _, s := range []string{"alice", "", "a.b", "*", ">", "%", "%2", "%2E", "%2e", "%41", "\xff", "%FF", "Größe", strings.Repeat("x", kbroker.MaxObjectIDBytes+1)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token := subjects.EscapeID(s)
		if token != "" && (!matches("*", token) || strings.ContainsAny(token, " \t\r\n*>\x00") || !isASCII(token)) {
			t.Fatalf("%q is escaped as %q, which is not one token", s, token)
		}
		back, ok := subjects.UnescapeID(token)
		if valid := (kbroker.Object{Kind: "k", ID: s}).Check() == nil; ok != valid || ok && back != s {
			t.Fatalf("%q is escaped as %q, which is %q, %t", s, token, back, ok)
		}
		if plain, ok := subjects.UnescapeID(s); ok && subjects.EscapeID(plain) != s {
			t.Fatalf("%q is another spelling of %q", s, subjects.EscapeID(plain))
		}
	})
}

func isASCII(s string) bool { return !strings.ContainsFunc(s, func(r rune) bool { return r > '~' }) }

// A parsed key is the key: no two spellings of one record.
func FuzzParseOwnKey(f *testing.F) {
	for _, key := range []string{"lease.alloc", "lease.shop-web-1.00ff", "head", "assign.3", "placed.0.1024", "left.1.1025", "release.3", "257.state.account.alice", "257.out.account.alice.7", "257.due.account.alice.x%20y"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		k := subjects.ParseOwnKey(key)
		again := key
		switch k.Table {
		case subjects.OwnUnknown:
			return
		case subjects.OwnLease:
			again = subjects.KeyLease(k.Incarnation)
		case subjects.OwnAssign:
			again = subjects.KeyAssign(k.Shard)
		case subjects.OwnRelease:
			again = subjects.KeyRelease(k.Shard)
		case subjects.OwnState:
			again = subjects.KeyState(k.Object)
		case subjects.OwnOut:
			again = subjects.KeyOut(k.Object, k.Number)
		case subjects.OwnDue:
			again = subjects.KeyDue(k.Object, k.Name)
		}
		if again != key {
			t.Fatalf("ParseOwnKey(%q) = %+v, which is %q", key, k, again)
		}
	})
}

func TestCallsOfObjectsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		app, o, method := name[kbroker.AppName](t, "app"), object(t), rapid.StringMatching(`[a-zA-Z_-]{1,64}`).Draw(t, "method")
		s := subjects.ObjectMethod(app, o.Shard(), o.Kind, method)
		gotApp, shard, kind, got, ok := subjects.ParseObjectMethod(s)
		if !ok || gotApp != app || shard != o.Shard() || kind != o.Kind || got != method {
			t.Fatalf("ParseObjectMethod(%q) = %q, %d, %q, %q, %t", s, gotApp, shard, kind, got, ok)
		}
		for _, all := range []string{subjects.ShardMethods(app, shard), subjects.Shards(app), subjects.ObjectMethods(app), subjects.KindMethod(app, kind, method), subjects.AllObjectMethods} {
			if !matches(all, s) {
				t.Fatalf("%q does not match %q", all, s)
			}
		}
		if matches(subjects.ShardMethods(app, (shard+1)%kbroker.Shards), s) {
			t.Fatalf("%q is heard by another shard", s)
		}
	})
	for _, s := range []string{"", "obj.bank.7.account", "obj.bank.7.account.m.x", "obj.bank.9007199254740993.account.m", "obj.bank.07.account.m", "obj.bank.x.account.m", "obj..7.account.m", "obj.bank.7..m", "obj.bank.7.account.", "svc.bank.7.account.m"} {
		if app, _, _, _, ok := subjects.ParseObjectMethod(s); ok {
			t.Errorf("%q is taken for a call of an object of %q", s, app)
		}
	}
}
