package kbroker_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

// Where an object is must never change: its records are there.
func TestAnObjectStaysInItsShard(t *testing.T) {
	for o, want := range map[kbroker.Object]kbroker.Shard{
		{Kind: "account", ID: "alice"}:                  257,
		{Kind: "account", ID: "bob"}:                    890,
		{Kind: "room", ID: "lobby"}:                     205,
		{Kind: "a", ID: "b"}:                            121,
		{Kind: "account", ID: "a:b/c"}:                  410,
		{Kind: "account", ID: "Größe"}:                  168,
		{Kind: "account", ID: strings.Repeat("x", 200)}: 371,
	} {
		if got := o.Shard(); got != want {
			t.Errorf("%.40s is in shard %d, want %d, as ever", o, got, want)
		}
	}
}

func TestShardsAreFilledEvenly(t *testing.T) {
	const perShard = 100
	filled := make([]int, kbroker.Shards)
	for i := range perShard * kbroker.Shards {
		s := kbroker.Object{Kind: "account", ID: fmt.Sprint(i)}.Shard()
		if int(s) >= kbroker.Shards {
			t.Fatalf("object %d is in shard %d of %d", i, s, kbroker.Shards)
		}
		filled[s]++
	}
	for shard, n := range filled {
		if n < perShard/2 || n > 2*perShard { // five deviations of chance
			t.Errorf("shard %d has %d objects of %d for each", shard, n, perShard)
		}
	}
}

func TestParseObject(t *testing.T) {
	long := strings.Repeat("x", kbroker.MaxObjectIDBytes)
	for in, want := range map[string]struct {
		app  kbroker.AppName
		o    kbroker.Object
		says string
	}{
		"bank/account:alice":         {"bank", kbroker.Object{Kind: "account", ID: "alice"}, ""},
		"bank/account:a:b/c d.*>":    {"bank", kbroker.Object{Kind: "account", ID: "a:b/c d.*>"}, ""},
		"bank/account:Größe":         {"bank", kbroker.Object{Kind: "account", ID: "Größe"}, ""},
		"bank/account:" + long:       {"bank", kbroker.Object{Kind: "account", ID: long}, ""},
		"bank/account:" + long + "x": {says: "has 201 bytes, at most 200"},
		"bank/account:":              {says: "the id of a account is empty"},
		"bank/account:\xff":          {says: "is not UTF-8"},
		"bank/account":               {says: "does not name an object"},
		"account:alice":              {says: "does not name an object"},
		"":                           {says: "does not name an object"},
		"Bank/account:alice":         {says: "app name"},
		"bank/Account:alice":         {says: "kind name"},
		"bank/:alice":                {says: "kind name is empty"},
	} {
		app, o, err := kbroker.ParseObject(in)
		switch {
		case want.says == "" && (err != nil || app != want.app || o != want.o):
			t.Errorf("%.60q is %s, %s: %v; want %s, %s", in, app, o, err, want.app, want.o)
		case want.says != "" && (!errors.Is(err, kbroker.Invalid) || !strings.Contains(err.Error(), want.says) || kbroker.AsError(err).Hint == ""):
			t.Errorf("%.60q: %v, want it invalid with a hint, and %q", in, err, want.says)
		}
		if err == nil {
			if again, same, err := kbroker.ParseObject(string(app) + "/" + o.String()); err != nil || again != app || same != o {
				t.Errorf("%s/%s comes back as %s, %s: %v", app, o, again, same, err)
			}
		}
	}
}

func key(t *rapid.T, what string) string {
	return rapid.StringMatching(`[0-9]{1,4}\.(state|out|due)\.[a-z]{1,5}\.[A-Za-z0-9%_-]{1,20}`).Draw(t, what)
}

func batches() *rapid.Generator[kbroker.OwnWriteRequest] {
	return rapid.Custom(func(t *rapid.T) kbroker.OwnWriteRequest {
		r, used := kbroker.OwnWriteRequest{}, map[string]bool{}
		for i := range rapid.IntRange(1, 6).Draw(t, "writes") {
			w := kbroker.Write{Key: fmt.Sprintf("%s%d", key(t, "key"), i)}
			if v := rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "value"); len(v) > 0 {
				w.Value = v
			}
			if rapid.Bool().Draw(t, "guarded") {
				w.Guard, w.GuardAt = key(t, "guard")+".g", kbroker.Revision(rapid.Uint64().Draw(t, "at"))
			} else {
				w.Expected = kbroker.Revision(rapid.Uint64().Draw(t, "expected"))
			}
			used[w.Key] = true
			r.Writes = append(r.Writes, w)
		}
		return r
	})
}

func TestABatchComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := batches().Draw(t, "batch")
		data, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got kbroker.OwnWriteRequest
		if err := got.UnmarshalBinary(data); err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) || !sameWrites(got.Writes, want.Writes) {
			t.Fatalf("the batch comes back as\n%+v (%v), want\n%+v", got, err, want)
		}
	})
}

func sameWrites(a, b []kbroker.Write) bool {
	for i, w := range a {
		if len(a) != len(b) || w.Key != b[i].Key || w.Expected != b[i].Expected || w.Guard != b[i].Guard || w.GuardAt != b[i].GuardAt || string(w.Value) != string(b[i].Value) {
			return false
		}
	}
	return len(a) == len(b)
}

func TestWhatIsReadComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := kbroker.OwnReadReply{More: rapid.Bool().Draw(t, "more"), Same: rapid.Bool().Draw(t, "same"), At: kbroker.Revision(rapid.Uint64().Draw(t, "at"))}
		for range rapid.IntRange(0, 6).Draw(t, "records") {
			s := kbroker.Stored{Key: key(t, "key"), Revision: kbroker.Revision(rapid.Uint64().Draw(t, "revision"))}
			s.Value = rapid.SliceOfN(rapid.Byte(), 1, 50).Draw(t, "value")
			want.Records = append(want.Records, s)
		}
		data, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got kbroker.OwnReadReply
		if err := got.UnmarshalBinary(data); err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Fatalf("it comes back as\n%+v (%v), want\n%+v", got, err, want)
		}
	})
}

func TestABatchHasBounds(t *testing.T) {
	many := func(n, size int) (all []kbroker.Write) {
		for i := range n {
			all = append(all, kbroker.Write{Key: fmt.Sprintf("%d.state.a.b", i), Value: make([]byte, size)})
		}
		return all
	}
	for name, c := range map[string]struct {
		writes []kbroker.Write
		says   string
	}{
		"as many as are allowed":        {many(kbroker.MaxBatchWrites, 1), ""},
		"as many bytes as are allowed":  {many(3, kbroker.MaxBatchBytes/3-20), ""},
		"nothing":                       {nil, "0 records"},
		"one too many":                  {many(kbroker.MaxBatchWrites+1, 1), "257 records"},
		"a value that is too large":     {many(1, kbroker.MaxObjectBytes+1), "at most 524288"},
		"too many bytes":                {many(3, kbroker.MaxBatchBytes/3), "at most 786432"},
		"no key":                        {[]kbroker.Write{{}}, "is not a key"},
		"a key that is too long":        {[]kbroker.Write{{Key: strings.Repeat("x", kbroker.MaxKeyBytes+1)}}, "at most 2048"},
		"a wildcard":                    {[]kbroker.Write{{Key: "1.*.a"}}, "is not a key"},
		"an empty token":                {[]kbroker.Write{{Key: "1..a"}}, "is not a key"},
		"a blank":                       {[]kbroker.Write{{Key: "1.a b"}}, "is not a key"},
		"a key of another alphabet":     {[]kbroker.Write{{Key: "1.ä"}}, "is not a key"},
		"one key twice":                 {[]kbroker.Write{{Key: "a"}, {Key: "a", Expected: 1}}, "written twice"},
		"a guard that is no key":        {[]kbroker.Write{{Key: "a", Guard: ">"}}, "is not a key"},
		"a guard and a revision":        {[]kbroker.Write{{Key: "a", Guard: "b", Expected: 1}}, "want one of them"},
		"the revision of no guard":      {[]kbroker.Write{{Key: "a", GuardAt: 1}}, "no guard"},
		"a guard that is written, too":  {[]kbroker.Write{{Key: "a", Guard: "b"}, {Key: "b"}}, "written in the same batch"},
		"a guard that is its own":       {[]kbroker.Write{{Key: "a", Guard: "a"}}, "written in the same batch"},
		"a guard that two records have": {[]kbroker.Write{{Key: "a", Guard: "g"}, {Key: "b", Guard: "g"}}, ""},
	} {
		data, err := kbroker.OwnWriteRequest{Writes: c.writes}.MarshalBinary()
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.says == "" && len(data) > 1<<20:
			t.Errorf("%s: a message of %d bytes", name, len(data))
		case c.says != "" && (!errors.Is(err, kbroker.Invalid) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, want it invalid, and %q", name, err, c.says)
		}
	}
}

func TestAReadHasBounds(t *testing.T) {
	for name, c := range map[string]struct {
		r  kbroker.OwnReadRequest
		ok bool
	}{
		"a key":               {kbroker.OwnReadRequest{Keys: []string{"head"}}, true},
		"what is below":       {kbroker.OwnReadRequest{Match: "12.out"}, true},
		"what is behind":      {kbroker.OwnReadRequest{Match: "12.out", After: "12.out.a.b.1"}, true},
		"behind another":      {kbroker.OwnReadRequest{Match: "12.out", After: "12.outer"}, false},
		"since a revision":    {kbroker.OwnReadRequest{Match: "12.out", Since: 7}, true},
		"a key since one":     {kbroker.OwnReadRequest{Keys: []string{"head"}, Since: 7}, false},
		"a part since one":    {kbroker.OwnReadRequest{Match: "12.out", After: "12.out.a.b.1", Since: 7}, false},
		"nothing":             {kbroker.OwnReadRequest{}, false},
		"both":                {kbroker.OwnReadRequest{Keys: []string{"head"}, Match: "12.out"}, false},
		"too many":            {kbroker.OwnReadRequest{Keys: make([]string, kbroker.MaxReadKeys+1)}, false},
		"a wildcard":          {kbroker.OwnReadRequest{Match: ">"}, false},
		"a wildcard as a key": {kbroker.OwnReadRequest{Keys: []string{"*"}}, false},
	} {
		if err := c.r.Check(); (err == nil) != c.ok || err != nil && !errors.Is(err, kbroker.Invalid) {
			t.Errorf("%s: %v, want it allowed: %t", name, err, c.ok)
		}
	}
}

// What is decoded is what was encoded, and nothing else: no byte is left, none is of two
// values, no size is believed.
func FuzzOwnWriteRequest(f *testing.F) {
	good, _ := kbroker.OwnWriteRequest{Writes: []kbroker.Write{{Key: "12.state.a.b", Expected: 3, Value: []byte("x\ny")}, {Key: "release.3", Guard: "assign.3", GuardAt: 4}}}.MarshalBinary()
	for _, s := range []string{"", "\n", "{}\n", string(good), string(good) + "x", string(good[:len(good)-1]), `{"writes":[{"key":"a","size":-1}]}` + "\n", `{"writes":[{"key":"a","size":1e18}]}` + "\nx", `{"writes":[null]}` + "\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r kbroker.OwnWriteRequest
		if err := r.UnmarshalBinary(data); err != nil {
			if !errors.Is(err, kbroker.Invalid) || len(r.Writes) > 0 && r.Check() == nil {
				t.Fatalf("%v with the batch %v", err, r)
			}
			return
		}
		again, err := r.MarshalBinary()
		if err != nil {
			t.Fatalf("%v is decoded and not encoded: %v", r, err)
		}
		var same kbroker.OwnWriteRequest
		if err := same.UnmarshalBinary(again); err != nil || !sameWrites(same.Writes, r.Writes) {
			t.Fatalf("%v comes back as %v: %v", r, same, err)
		}
	})
}

func FuzzOwnReadReply(f *testing.F) {
	good, _ := kbroker.OwnReadReply{Records: []kbroker.Stored{{Key: "12.state.a.b", Revision: 3, Value: []byte("x\ny")}, {Key: "head"}}, More: true}.MarshalBinary()
	for _, s := range []string{"", "\n", "{}\n", string(good), string(good) + "x", string(good[:len(good)-1]), `{"records":[{"key":"a","size":-1}]}` + "\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r kbroker.OwnReadReply
		if err := r.UnmarshalBinary(data); err != nil {
			if !errors.Is(err, kbroker.Invalid) {
				t.Fatalf("%v, want it invalid", err)
			}
			return
		}
		again, err := r.MarshalBinary()
		if err != nil {
			t.Fatalf("%v is decoded and not encoded: %v", r, err)
		}
		var same kbroker.OwnReadReply
		if err := same.UnmarshalBinary(again); err != nil || fmt.Sprintf("%+v", same) != fmt.Sprintf("%+v", r) {
			t.Fatalf("%v comes back as %v: %v", r, same, err)
		}
	})
}

// A million records that are nothing are not decoded before they are counted.
func TestAFirstLineIsBounded(t *testing.T) {
	for _, into := range []interface{ UnmarshalBinary([]byte) error }{&kbroker.OwnWriteRequest{}, &kbroker.OwnReadReply{}, &kbroker.TopicReadReply{}} {
		for _, list := range []string{"writes", "records", "events"} {
			data := `{"` + list + `":[null` + strings.Repeat(",null", 150_000) + "]}\n"
			if err := into.UnmarshalBinary([]byte(data)); !errors.Is(err, kbroker.Invalid) || !strings.Contains(err.Error(), "commas") {
				t.Errorf("%T takes 150000 records: %v", into, err)
			}
		}
		if err := into.UnmarshalBinary(make([]byte, 1<<20+1)); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("%T takes more than a message: %v", into, err)
		}
	}
}
