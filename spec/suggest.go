package spec

import (
	"fmt"
	"strings"
)

// didYouMean is the hint for a word that is none of the known ones.
func didYouMean(word string, known []string) string {
	if hint, ok := similar(word, known); ok {
		return hint
	}
	return "known here: " + strings.Join(known, ", ")
}

func similar(word string, known []string) (hint string, ok bool) {
	best, distance := "", 3
	for _, k := range known {
		d := editDistance(strings.ToLower(word), strings.ToLower(k))
		if d < distance && d < len(k) {
			best, distance = k, d
		}
	}
	if best == "" {
		return "", false
	}
	return fmt.Sprintf("did you mean %q?", best), true
}

// editDistance is Levenshtein's, with a swap of neighbours counted once. Words
// longer than any known one are told apart by their first bytes.
func editDistance(a, b string) int {
	const enough = 40
	a, b = a[:min(len(a), enough)], b[:min(len(b), enough)]
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
