package subjects

import (
	"strings"

	"github.com/kbroker/kbroker"
)

// Sign is where a host's agent has credentials signed for what it starts, by any core.
func Sign(host kbroker.HostID) string { return "kb.sign." + string(host) }

// AllSigns are the subjects of Sign.
const AllSigns = "kb.sign.*"

// Renew is where the process whose credential has this public key has it signed again,
// by any core.
func Renew(key string) string { return renewPrefix + key }

const renewPrefix = "kb.renew."

// AllRenews are the subjects of Renew.
const AllRenews = renewPrefix + "*"

// RenewKey is the key in a subject of Renew.
func RenewKey(subject string) (key string, ok bool) {
	key, ok = strings.CutPrefix(subject, renewPrefix)
	return key, ok && key != "" && !strings.Contains(key, ".")
}

// Revoked is where a core tells another which credentials were taken back.
func Revoked(host kbroker.HostID) string { return "kb.revoked." + string(host) }
