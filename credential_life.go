package kbroker

import "time"

// Bounds of how long a core signs for instances. What is signed is renewed at half of its
// life, so the shortest leaves 5 s to reach a core.
const (
	MinCredentialLife = 10 * time.Second
	MaxCredentialLife = 720 * time.Hour
)

// SignsFor is how long what a host signs for instances holds, if it says life: within the
// bounds, whatever it says. 0: it has not said, or is a worker, which signs nothing.
func (h Host) SignsFor(life time.Duration) time.Duration {
	if h.Role != RoleCore || life <= 0 {
		return 0
	}
	return min(max(life, MinCredentialLife), MaxCredentialLife)
}
