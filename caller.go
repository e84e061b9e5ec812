package kbroker

// Caller is who asks for something, as the server that let them in knows them: nobody
// says it of themselves. What is not known is empty. Without a name and a key it is who
// has shown no credential.
type Caller struct {
	Name string `json:"name,omitempty"` // in the credential; for people
	Role string `json:"role,omitempty"`
	// Key is the public key of the credential's user.
	Key      string     `json:"key,omitempty"`
	Tenant   TenantID   `json:"tenant,omitempty"`
	App      AppName    `json:"app,omitempty"`
	Instance InstanceID `json:"instance,omitempty"` // of a start of an instance, and of an allocator
	Host     HostID     `json:"host,omitempty"`     // it runs on; of an agent or a core: its own
	Address  string     `json:"address,omitempty"`  // without a port
}

// String is the caller in a word: the name, or what is known instead.
func (c Caller) String() string {
	for _, s := range []string{c.Name, string(c.Instance), string(c.Host), c.Key, c.Address} {
		if s != "" {
			return s
		}
	}
	return "nobody"
}
