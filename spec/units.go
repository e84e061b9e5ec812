package spec

import (
	"math"
	"regexp"
	"strconv"
)

var sizeForm = regexp.MustCompile(`^([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kKMGT]i?)?B$`)

var sizeUnits = map[string]float64{
	"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
	"ki": 1 << 10, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}

const sizeHint = "write a size with its unit, e.g. 64MiB, 1GiB or 500MB"

// parseSize reads "64MiB", "1.5GiB", "500MB".
func parseSize(s string) (sizeBytes int64, ok bool) {
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if n *= sizeUnits[m[2]]; err != nil || n >= math.MaxInt64 {
		return 0, false
	}
	return int64(n), true
}

// formatSize is the shortest exact form that parseSize reads.
func formatSize(sizeBytes int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if sizeBytes >= u.size && sizeBytes%u.size == 0 {
			return strconv.FormatInt(sizeBytes/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(sizeBytes, 10) + "B"
}
