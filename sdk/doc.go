// Package sdk is what applications import: it turns functions into services and
// calls those of others.
//
// # Serving
//
//	app := sdk.New()
//	sdk.Handle(app, "greet", func(ctx context.Context, in Greet) (Greeting, error) { ... }, sdk.Idempotent())
//	app.Main() // signals, drain, exit code
//
// New learns from the agent who the process is. Without an agent, for
// development, the app.yaml of the working directory says it and the cluster is
// the one that the command line would use. Handlers run beside each other up to
// Concurrency; beyond it a request is refused at once (Overloaded) and the
// caller tries another instance. A panic in a handler is answered as Internal
// and ends nothing else. On SIGTERM, or when the cluster has placed the instance
// elsewhere, the app stops taking requests, finishes those it has, and exits 0.
//
// # Calling
//
//	out, err := sdk.Call[Greeting](ctx, sdk.Service("hello"), "greet", Greet{Name: "Ann"})
//
// A call ends with an answer, or with an error at its deadline (DefaultTimeout
// where ctx has none). Errors are *kbroker.Error with a code, a hint and
// Executed, which is about the whole call and not about its last attempt:
//
//	yes      the handler ran to its end, its answer is the error
//	no       no attempt reached a handler, every one was answered so
//	unknown  an attempt ended without an answer: it may have run
//
// Attempts are sent again with the same request id:
//
//	nobody there, not connected               always, 2 ms to 200 ms apart
//	overloaded                                always, likewise; up to 400 ms where many are
//	no answer within min(deadline/3, 1.5 s),
//	or the connection was lost and is back    idempotent methods only, within a
//	                                          budget of 20 % of the last 10 s of
//	                                          calls (at least 100) per process
//	any answer of a handler                   never
//
// The first attempt of a call to an object that is not answered is sent again after
// min(deadline/10, 0.5 s), from the same budget.
//
// docs/errors.md has the whole table, and what to do about each error.
//
// An attempt that was not answered is listened to until the deadline: a slow
// handler's answer counts whenever it arrives.
//
// When the server of its connection shuts down for an upgrade, a process moves to
// another one without losing a request; when its own host's is back, it
// returns.
//
// # Streams
//
//	sdk.HandleStream(app, "tail", func(ctx context.Context, in Tail, send func(Line) error) error { ... })
//	for line, err := range sdk.Stream[Line](ctx, sdk.Service("logs"), "tail", in) { ... }
//
// Items come in order; one that is lost ends the stream with an error. See docs/streams.md.
//
// # Events
//
//	err := sdk.Publish(ctx, "orders", order)
//	sdk.Subscribe(app, "shop/orders", func(ctx context.Context, o Order) error { ... })
//
// Who is there hears them; nothing is stored. Those of PublishDurable are: each calls a method of
// an object, or a handler, whatever fails meanwhile.
//
//	err := sdk.PublishDurable(ctx, "orders", order) // in a turn: stored with what it does
//	sdk.SubscribeObject(customers, "shop/orders", func(o Order) string { return o.Customer }, "ordered")
//	sdk.SubscribeDurable(app, "shop/orders", func(ctx context.Context, o Order) error { ... })
//
// See docs/events.md.
//
// # Objects
//
//	accounts := sdk.Objects[Account](app, "account")
//	sdk.Method(accounts, "deposit", (*Account).Deposit)
//	sdk.ReadOnly(accounts, "balance", (*Account).Balance)
//
// An object is a Go value with a name: its exported fields are stored, one instance at a
// time owns it, and one turn at a time runs on it. It is called by its name:
//
//	b, err := sdk.Call[Balance](ctx, sdk.Object("bank/account:alice"), "deposit", Deposit{Cents: 5})
//
// The reply leaves after the change is stored. A turn that returns an error changes nothing.
// A call takes effect once, however often it is sent again: whatever the method, attempts
// that were not answered are, and while the object moves to another owner.
//
// Options of a kind say when its objects are stored (Durable), how many are in memory
// (IdleAfter, MaxActive), and how states of older programs are read (Schema). Timer has a
// method called later, in memory; OnActivate runs when an object comes there.
//
// When the lease is lost by which an instance owns objects, as its host stood still for some
// seconds, Run returns an error and the process ends; its agent starts it again.
//
// # What does not speak NATS
//
// Endpoints says where the instances of a service listen that has ports in its spec, such as
// a database: address and number of those that are ready.
//
//	all, err := sdk.Endpoints(ctx, app, "cache/redis", "redis") // asked once a second at most
//
// # Wire
//
// Values are JSON; []byte is passed as it is. docs/protocol.md describes what is
// on the wire, for clients in other languages.
package sdk
