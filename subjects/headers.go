package subjects

// Headers of requests and replies. They are part of the wire protocol that
// docs/protocol.md describes.
const (
	// HeaderRequestID identifies a call over all its attempts.
	HeaderRequestID = "Kb-Request-Id"
	// HeaderTimeout is how long the caller will still wait, in milliseconds.
	HeaderTimeout = "Kb-Timeout-Ms"
	// HeaderCode marks a reply as an error: the body is a kbroker.Error.
	HeaderCode = "Kb-Code"
	// HeaderInstance names the incarnation that answered.
	HeaderInstance = "Kb-Instance"
	// HeaderIdempotent is "1" on replies of methods that may be sent again.
	HeaderIdempotent = "Kb-Idempotent"
	// HeaderObject is the id of the object that is called, as EscapeID makes it.
	HeaderObject = "Kb-Object"
	// HeaderConfirmed is up to where the calls of a session are over: no answer to one
	// with a lower sequence is waited for.
	HeaderConfirmed = "Kb-Confirmed"
	// HeaderOnce names a call that a turn makes of an object, the same if the turn is repeated:
	// one that has taken effect is known by it, whatever its request id.
	HeaderOnce = "Kb-Once"
	// HeaderAge is how long before an attempt the first one was sent that may have run, in
	// milliseconds, by a clock of the caller that nobody sets; 0: this is the first.
	HeaderAge = "Kb-Age-Ms"
	// HeaderSent is when the call was begun, in milliseconds of Unix, the same with all
	// its attempts: for owners that do not know HeaderAge, and of callers that do not.
	HeaderSent = "Kb-Sent-Ms"
	// HeaderPlaced says with an error, as true or false, whether the object that was called is a
	// placed one: who calls did not know.
	HeaderPlaced = "Kb-Placed"
	// HeaderLinearizable is "1" on a read that its owner is to confirm by a write.
	HeaderLinearizable = "Kb-Linearizable"
	// HeaderChain names the objects whose turns wait for the call, outermost first, each
	// as <app>/<kind>:<id> with the id escaped, separated by commas.
	HeaderChain = "Kb-Chain"
	// HeaderRoot is the call that a chain has begun with, and when, as
	// <microseconds of Unix>-<its id>: of those that wait for each other the younger one
	// is refused. Who sends it on a chain hears HeaderWaits.
	HeaderRoot = "Kb-Root"
	// HeaderWaits marks a message to who waits for an answer as none: it says whose turn
	// the call waits for, see docs/protocol.md.
	HeaderWaits = "Kb-Waits"
	// HeaderCrossing is "1" on an error of a call that was refused, or whose turn was, as it
	// crossed another: it may succeed when it is sent again.
	HeaderCrossing = "Kb-Crossing"
	// HeaderStream is on the messages of a stream. On its request: how many items may be on
	// their way. From who serves it: "item <n>", "alive <n>" or "end <n>", where n counts the
	// items. To who serves it: "end", nobody wants more.
	HeaderStream = "Kb-Stream"
	// HeaderNumber is on an event that is stored: its number among those of its sender in the
	// topic.
	HeaderNumber = "Kb-Number"
	// HeaderSequence is the revision of a record that is republished: of the server.
	HeaderSequence = "Nats-Sequence"
	// HeaderOffset is on a chunk of an upload: where in the file it begins. A
	// chunk without payload only asks how much was received.
	HeaderOffset = "Kb-Offset"
	// HeaderCommit is "1" on the message that ends an upload.
	HeaderCommit = "Kb-Commit"
	// HeaderSize is on a piece of an artifact: the length of the whole.
	HeaderSize = "Kb-Size"
	// HeaderMicroError and HeaderMicroErrorCode are those of NATS micro.
	HeaderMicroError     = "Nats-Service-Error"
	HeaderMicroErrorCode = "Nats-Service-Error-Code"
)
