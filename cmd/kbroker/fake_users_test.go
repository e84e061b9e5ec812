package main

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// user makes or revokes one. A user named lost is made without an answer the first time.
func (f *fakeCore) user(verb string, m *nats.Msg) (any, error) {
	if !f.leader {
		return nil, kbroker.Errorf(kbroker.NoLeader, "the cluster has no leader")
	}
	var r kbroker.UserRequest // which has the name of the other one
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(f.users, func(u kbroker.User) bool { return u.Name == r.Name })
	if verb == subjects.VerbUserRevoke {
		if i < 0 {
			return nil, kbroker.Errorf(kbroker.NotFound, "there is no user %s", r.Name)
		}
		was := f.users[i].State(fakeNow)
		f.writes, f.users[i].Revoked = append(f.writes, "revoke user "+string(r.Name)), fakeNow
		return kbroker.RevokeUserReply{Unchanged: was != kbroker.UserActive}, nil
	}
	u := kbroker.User{Tenant: kbroker.DefaultTenant, Name: r.Name, Role: r.Role, Key: r.Key, Created: fakeNow, By: "ann@laptop"}
	if r.TTL > 0 {
		u.Expires = fakeNow.Add(r.TTL)
	}
	switch {
	case i < 0:
		f.users = append(f.users, u)
		f.writes = append(f.writes, strings.TrimSpace("user "+string(r.Name)+" "+string(r.Role)))
		if r.Name == "lost" {
			return nil, kbroker.Errorf(kbroker.Internal, "what came of it is not known")
		}
	case f.users[i].Key != r.Key:
		return nil, kbroker.Errorf(kbroker.Conflict, "there is a user %s already", r.Name).WithHint("kbroker user revoke %s", r.Name)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		return nil, err
	}
	claims := jwt.NewUserClaims(r.Key)
	claims.Name = string(r.Name)
	signed, err := claims.Encode(account)
	return kbroker.UserReply{Credential: signed, Expires: u.Expires}, err
}
