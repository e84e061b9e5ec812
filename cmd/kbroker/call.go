package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/sdk"
)

const (
	// callTimeout bounds a call unless --timeout says.
	callTimeout = 5 * time.Second
	// lookupTimeout bounds the question which services an app has.
	lookupTimeout = 1500 * time.Millisecond
	// maxArgumentBytes bounds what is read from standard input: the most that
	// one message of the cluster carries.
	maxArgumentBytes = 1 << 20
)

func (c *cli) callCommand() *cobra.Command {
	var requestID string
	cmd := &cobra.Command{
		Use:   "call APP[/SERVICE | /KIND:ID] METHOD [JSON | KEY=TEXT KEY:=JSON ... | -]",
		Short: "Call a method of a service or of an object and print its answer",
		Long: `Call a method of a service or of an object and print its answer. The argument is
JSON, or an object made of KEY=TEXT and KEY:=JSON, or (-) what comes from standard
input, as it is; without one it is an empty object. APP alone means the app's
service of the same name, or its only one.

A call of an object that is made again with the same --request-id within a minute
is answered as it was the first time, and takes effect once.`,
		Example: `  kbroker call hello greet name=World
  kbroker call bank/ledger add '{"cents": 100}'
  kbroker call bank/ledger add cents:=100 note=lunch
  kbroker call bank/account:alice deposit cents:=100 --request-id lunch:1
  cat text.json | kbroker call wordcount count -`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := callee(args[0])
			if err != nil {
				return err
			}
			in, err := argument(args[2:], c.in)
			if err != nil {
				return err
			}
			ctx, cancel := c.within(cmd.Context(), callTimeout)
			defer cancel()
			if target.service == "" && target.object.Kind == "" {
				if target.service, err = c.onlyService(ctx, target.app); err != nil {
					return err
				}
			}
			answer, err := c.call(ctx, target, args[1], in, requestID)
			if err != nil {
				return c.unserved(cmd.Context(), target, args[1], err)
			}
			return c.printAnswer(answer)
		},
	}
	cmd.Flags().StringVar(&requestID, "request-id", "", "the id of the request, to repeat one that may have run")
	return cmd
}

// called is what a call goes to: a service of an app, or one of its objects.
type called struct {
	app     kbroker.AppName
	service kbroker.ServiceName
	object  kbroker.Object
}

func callee(name string) (to called, err error) {
	if strings.Contains(name, ":") {
		to.app, to.object, err = kbroker.ParseObject(name)
		return to, err
	}
	to.app, to.service, err = serviceName(name)
	return to, err
}

func (t called) String() string {
	if t.object.Kind != "" {
		return string(t.app) + "/" + t.object.String()
	}
	return string(t.app) + "/" + string(t.service)
}

// call makes one call through the SDK.
func (c *cli) call(ctx context.Context, to called, method string, in []byte, requestID string) ([]byte, error) {
	caller, err := sdk.Dial(ctx, sdk.At(c.server), sdk.Logger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, err
	}
	defer caller.Close()
	var opts []sdk.CallOption
	if requestID != "" {
		opts = append(opts, sdk.RequestID(requestID))
	}
	target := caller.Service
	if to.object.Kind != "" {
		target = caller.Object
	}
	return sdk.Call[[]byte](ctx, target(to.String()), method, in, opts...)
}

// unserved is failed, the end of a call, with what the cluster knows of the
// service when nobody took the call, or none is known to have: that there is none, or why
// none runs.
func (c *cli) unserved(ctx context.Context, to called, method string, failed error) error {
	e := kbroker.AsError(failed)
	nobody := e.Code == kbroker.Unavailable || to.object.Kind != "" && e.Code == kbroker.DeadlineExceeded
	if !nobody || e.Executed == kbroker.ExecutedYes || ctx.Err() != nil {
		return failed
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	api, _, err := c.open(ctx)
	if err != nil {
		return failed
	}
	defer api.Close()
	row, err := api.App(ctx, to.app)
	var found *kbroker.Error
	switch {
	case errors.Is(err, kbroker.NotFound):
		found = kbroker.AsError(err)
	case err != nil:
		return failed
	case to.object.Kind == "" && !slices.Contains(row.Services, string(to.service)):
		found = kbroker.Errorf(kbroker.NotFound, "app %q has no service %q", to.app, to.service).WithHint("it has %s", strings.Join(row.Services, ", "))
	case row.Stopped:
		found = kbroker.Errorf(kbroker.Unavailable, "nobody serves %s %s: the app is stopped", to, method).
			WithHint("`kbroker restart %s` starts it again", to.app)
	case to.object.Kind != "" && e.Executed == kbroker.ExecutedNo:
		found = unowned(ctx, api, to, row, e)
	}
	if found == nil {
		return failed
	}
	answered := *found // a copy: the executed word is that of the call
	answered.Executed = e.Executed
	return &answered
}

// unowned is the end of a call to an object with what keeps its owner from it: the app has
// no objects of the kind, nobody owns the shard, or who does is not there; nil: nothing is
// known to.
func unowned(ctx context.Context, api *client.Client, to called, row kbroker.AppRow, ended *kbroker.Error) *kbroker.Error {
	d, err := api.Object(ctx, to.app, to.object)
	switch {
	case errors.Is(err, kbroker.NotFound):
		return kbroker.AsError(err)
	case err != nil || d.Owner != "" && d.Seen != nil && d.Seen.Serves:
		return nil
	}
	why := *ended
	return why.WithHint("%s", strings.Join(append(whyOwned(d, row, time.Now()), whySo(d)...), " "))
}

// onlyService is the service that an app's name alone means. When no core
// answers it is the one of the same name: a call itself needs no core's word.
func (c *cli) onlyService(ctx context.Context, app kbroker.AppName) (kbroker.ServiceName, error) {
	api, _, err := c.open(ctx)
	if err != nil {
		return "", err
	}
	defer api.Close()
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	service, err := chooseService(ctx, api, app)
	if errors.Is(err, kbroker.Unavailable) {
		return kbroker.ServiceName(app), nil
	}
	return service, err
}

func chooseService(ctx context.Context, api *client.Client, app kbroker.AppName) (kbroker.ServiceName, error) {
	row, err := api.App(ctx, app)
	if err != nil {
		return "", err
	}
	for _, s := range row.Services {
		if s == string(app) {
			return kbroker.ServiceName(s), nil
		}
	}
	if len(row.Services) != 1 {
		return "", kbroker.Errorf(kbroker.Invalid, "%s has the services %s", app, strings.Join(row.Services, ", ")).
			WithHint("say which one: %s/SERVICE", app)
	}
	return kbroker.ServiceName(row.Services[0]), nil
}

// argument is what the words after the method stand for: JSON, except that
// standard input may be anything, for methods that take bytes.
func argument(words []string, stdin io.Reader) ([]byte, error) {
	switch {
	case len(words) == 0:
		return []byte("{}"), nil
	case len(words) == 1 && words[0] == "-":
		b, err := io.ReadAll(io.LimitReader(stdin, maxArgumentBytes+1))
		switch {
		case err != nil:
			return nil, fmt.Errorf("read standard input: %w", err)
		case len(b) > maxArgumentBytes:
			return nil, kbroker.Errorf(kbroker.Invalid, "standard input has more than %d bytes", maxArgumentBytes)
		}
		return b, nil
	case len(words) == 1 && json.Valid([]byte(words[0])):
		return []byte(words[0]), nil
	}
	object := map[string]json.RawMessage{}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		name, raw := strings.CutSuffix(key, ":")
		switch {
		case !ok || name == "":
			return nil, kbroker.Errorf(kbroker.Invalid, "%q is neither JSON nor KEY=TEXT nor KEY:=JSON", word).
				WithHint(`quote JSON for the shell: '{"name": "World"}'`)
		case object[name] != nil:
			return nil, kbroker.Errorf(kbroker.Invalid, "%q is given twice", name)
		case raw && !json.Valid([]byte(value)):
			return nil, kbroker.Errorf(kbroker.Invalid, "the value of %s:= is not JSON: %s", name, value).
				WithHint("%s=%s sends it as text", name, value)
		case raw:
			object[name] = json.RawMessage(value)
		default:
			text, err := json.Marshal(value)
			if err != nil {
				return nil, fmt.Errorf("encode %s: %w", name, err)
			}
			object[name] = text
		}
	}
	return json.Marshal(object)
}

// printAnswer prints JSON in the chosen form, anything else as it is: where
// JSON or YAML is asked for text as a string, bytes as one in base64.
func (c *cli) printAnswer(answer []byte) error {
	switch {
	case c.output != formatTable && json.Valid(answer):
		return c.print(json.RawMessage(answer), nil)
	case c.output != formatTable && utf8.Valid(answer):
		return c.print(string(answer), nil)
	case c.output != formatTable:
		return c.print(answer, nil)
	case json.Valid(answer) || isTerminal(c.out):
		answer = append(bytes.TrimRight(answer, "\n"), '\n')
	}
	_, err := c.out.Write(answer)
	return err
}
