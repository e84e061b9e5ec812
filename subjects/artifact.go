package subjects

import (
	"strconv"
	"strings"

	"github.com/kbroker/kbroker"
)

// Upload is where the chunks of one upload go.
func Upload(core kbroker.HostID, tenant kbroker.TenantID, session string) string {
	return "kb.artifact." + string(core) + "." + string(tenant) + "." + session
}

// UploadTenant is the tenant in a subject of Upload.
func UploadTenant(subject string) (kbroker.TenantID, bool) {
	t := strings.Split(subject, ".")
	if len(t) != 5 || t[0] != "kb" || t[1] != "artifact" || t[3] == "" {
		return "", false
	}
	return kbroker.TenantID(t[3]), true
}

// Artifacts is the stream of a tenant's artifacts.
func Artifacts(t kbroker.TenantID) string { return "artifacts_" + string(t) }

// ArtifactAll are the subjects of Artifacts.
func ArtifactAll(t kbroker.TenantID) string { return "art." + string(t) + ".>" }

// ArtifactMeta is where an artifact's record is stored once it is whole.
func ArtifactMeta(t kbroker.TenantID, sha256 string) string {
	return "art." + string(t) + ".meta." + sha256
}

// ArtifactChunk is where the n-th chunk of one upload is stored.
func ArtifactChunk(t kbroker.TenantID, upload string, n int) string {
	return "art." + string(t) + ".chunk." + upload + "." + strconv.Itoa(n)
}

// ArtifactChunks matches all chunks of one upload.
func ArtifactChunks(t kbroker.TenantID, upload string) string {
	return "art." + string(t) + ".chunk." + upload + ".>"
}
