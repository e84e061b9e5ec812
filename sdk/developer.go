package sdk

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/spec"
)

// specFile is where a program without an agent learns who it is.
const specFile = "app.yaml"

// developer is who a process is that no agent started: as ("app/service"), or
// what the app.yaml of the working directory says. Which start of it says the
// credential, if that is for one; else it is a new one. Such an instance has no
// placement. Invalid: the credential is for another service.
func developer(as string, cluster connect.Target) (kbroker.InstanceFile, error) {
	target := Service(as)
	if as == "" {
		var err error
		if target, err = fromSpec(specFile); err != nil {
			return kbroker.InstanceFile{}, err
		}
	}
	if target.err != nil {
		return kbroker.InstanceFile{}, target.err
	}
	start, given, err := cluster.Start()
	switch {
	case err != nil:
		return kbroker.InstanceFile{}, err
	case given && (start.App != target.app || start.Service != target.service):
		return kbroker.InstanceFile{}, kbroker.Errorf(kbroker.Invalid, "this program is %s/%s, and its credential, from %s, is for %s/%s", target.app, target.service, cluster.Source, start.App, start.Service).
			WithHint("`kbroker run %s/%s -- ...` gives it one of its own", target.app, target.service)
	case given:
		return start, nil
	}
	return newStart(target, cluster.Tenant), nil
}

// newStart makes one of a service.
func newStart(target Target, tenant kbroker.TenantID) kbroker.InstanceFile {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	start := hex.EncodeToString(b[:])
	instance := fmt.Sprintf("%s-%s-dev%s", target.app, target.service, start[:4])
	return kbroker.InstanceFile{
		Tenant: tenant, App: target.app, Service: target.service,
		Instance:    kbroker.InstanceID(instance),
		Incarnation: kbroker.Incarnation(instance + "." + start),
	}
}

// fromSpec takes the app's service of the same name, or its only one.
func fromSpec(file string) (Target, error) {
	src, err := os.ReadFile(file)
	if err != nil {
		return Target{}, kbroker.Errorf(kbroker.NotFound, "who is this program? %v", err).
			WithHint("start it with `kbroker deploy`, in the folder of its %s, or with the option sdk.As", file)
	}
	app, err := spec.Parse(src, file)
	if err != nil {
		return Target{}, err
	}
	service, ok := app.DefaultService()
	if !ok {
		return Target{}, kbroker.Errorf(kbroker.Invalid, "%s has %d services, and none is called %s", file, len(app.Services), app.Name).
			WithHint("say which one this program is with the option sdk.As")
	}
	return Service(string(app.Name) + "/" + string(service.Name)), nil
}
