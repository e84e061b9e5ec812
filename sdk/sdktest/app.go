package sdktest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/allocator"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// Place has a kind of objects of an app be placed, as in "rooms/room", each of its objects take
// d, and each instance have so many slots; 0: they are not counted. Its spec says so otherwise.
// It is called before Run of the app.
func (c *Cluster) Place(kind string, d kbroker.Demanded, slots int) {
	c.t.Helper()
	app, name, ok := strings.Cut(kind, "/")
	if err := errors.Join(kbroker.CheckName("app", app), kbroker.CheckName("kind", name)); !ok || err != nil {
		c.t.Fatalf("sdktest: place %q: want app/kind", kind)
	}
	c.deploying.Lock()
	defer c.deploying.Unlock()
	of := c.placed[kbroker.AppName(app)]
	if of.kinds == nil {
		of.kinds = map[kbroker.KindName]kbroker.Demanded{}
	}
	of.kinds[kbroker.KindName(name)], of.slots = d, slots
	c.placed[kbroker.AppName(app)] = of
}

// places is what an app has for placed objects.
type places struct {
	kinds map[kbroker.KindName]kbroker.Demanded
	slots int
}

// placedOf are the kinds of an app that are placed, sorted.
func (c *Cluster) placedOf(app kbroker.AppName) []kbroker.KindName {
	c.deploying.Lock()
	defer c.deploying.Unlock()
	return slices.Sorted(maps.Keys(c.placed[app].kinds))
}

// streams are those that the objects of an app are stored in.
const streams = 1

// app is one that was deployed.
type app struct {
	name      kbroker.AppName
	version   int
	services  []kbroker.Service
	allocator *allocator.Allocator // nil: it has no objects
}

// deploy has the cluster know a service of an app, as super does; nothing happens if it
// does already.
func (c *Cluster) deploy(name kbroker.AppName, of kbroker.Service) error {
	c.deploying.Lock()
	defer c.deploying.Unlock()
	if len(of.Objects) > 0 {
		of.Placed, of.Slots = c.placed[name].kinds, c.placed[name].slots
	}
	a := c.apps[name]
	if a == nil {
		a = &app{name: name}
		c.apps[name] = a
	}
	for _, s := range a.services {
		if s.Name != of.Name {
			continue
		}
		if !slices.Equal(s.Objects, of.Objects) {
			return fmt.Errorf("service %s/%s served objects of kinds %q, and now of %q", name, of.Name, s.Objects, of.Objects)
		}
		return nil
	}
	a.services = append(a.services, of)
	slices.SortFunc(a.services, func(x, y kbroker.Service) int { return cmp.Compare(x.Name, y.Name) })
	a.version++
	k := state.AppKey{Tenant: kbroker.DefaultTenant, App: name}
	if len(of.Objects) > 0 && a.allocator == nil {
		if err := errors.Join(c.store.EnsureApp(c.ctx, k), c.store.EnsureObjects(c.ctx, k, streams)); err != nil {
			return err
		}
	}
	spec := kbroker.App{Name: name, Services: a.services, ObjectStreams: streams}
	version := kbroker.AppVersion{Tenant: k.Tenant, Version: a.version, App: spec, Created: time.Now().UTC(), Cause: "deploy"}
	head := kbroker.AppRecord{Tenant: k.Tenant, App: name, Version: a.version, Latest: a.version, ObjectStreams: streams}
	if err := errors.Join(c.put(subjects.KeyVersion(k.Tenant, name, a.version), version), c.put(subjects.KeyApp(k.Tenant, name), head)); err != nil {
		return err
	}
	if len(of.Objects) > 0 && a.allocator == nil {
		return c.allocate(a)
	}
	return nil
}

// put writes a record of the control store.
func (c *Cluster) put(key string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	if _, err := c.conn.Request(subjects.Control(key), body, patience); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

// allocate starts the allocator of an app.
func (c *Cluster) allocate(a *app) error {
	instance := kbroker.InstanceID(fmt.Sprintf("%s-%s-1", a.name, kbroker.AllocatorService))
	made, err := allocator.New(allocator.Config{
		Instance: kbroker.InstanceFile{
			Tenant: kbroker.DefaultTenant, App: a.name, Service: kbroker.AllocatorService, Instance: instance,
			Incarnation: incarnationOf(instance), Host: host, Version: 1, Epoch: 1,
		},
		Conn: c.conn, Judge: c.now, Log: c.log.With("component", "allocator"),
	})
	if err != nil {
		return err
	}
	a.allocator = made
	c.running.Go(func() {
		if err := made.Run(c.ctx); err != nil && c.ctx.Err() == nil {
			c.t.Errorf("sdktest: the allocator of %s ended: %v", a.name, err)
		}
	})
	return nil
}
