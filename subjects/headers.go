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
