package kbroker

import "strconv"

// Claim is what who asks for something for a key signs with that key, and so proves that
// it has it: nobody has another's key signed for, or taken back with its own. The first
// part says what kind it is, and no two kinds have the same.
type Claim []string

// Claim is for Key, of a start on a host.
func (r SignRequest) Claim(host HostID) Claim {
	return Claim{"kbroker start", string(host), string(r.Tenant), string(r.Instance), strconv.FormatUint(r.Epoch, 10), string(r.Incarnation)}
}

// Claim is for Key.
func (r DevelopRequest) Claim() Claim {
	return Claim{"kbroker develop", string(r.Tenant), string(r.App), string(r.Service), string(r.Instance), string(r.Incarnation)}
}

// Claim is for User: the one of a host that has its Fingerprint.
func (r JoinRequest) Claim() Claim {
	return Claim{"kbroker worker", string(r.Host), strconv.Itoa(r.Generation), r.Fingerprint}
}

// Claim is for Key.
func (r UserRequest) Claim() Claim {
	return Claim{"kbroker user", string(r.Tenant), string(r.Name), string(r.Role)}
}
