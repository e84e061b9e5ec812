package agent

import (
	"testing"
	"time"
)

// TestPatienceWithTheHolderOfALock: what is looked at is the lock, then the
// process. One that was exiting for longer than a moment and is gone by now had
// the lock when that was looked at.
func TestPatienceWithTheHolderOfALock(t *testing.T) {
	type look struct {
		after   time.Duration
		exiting bool
	}
	const moment = time.Millisecond
	for name, tc := range map[string]struct {
		looks []look
		want  bool // of the last one; all before are not over
	}{
		"nobody is named, at first":        {looks: []look{{0, false}, {lockPatience, false}}},
		"nobody is named":                  {looks: []look{{0, false}, {lockPatience + moment, false}}, want: true},
		"it exits":                         {looks: []look{{0, true}, {lockPatience + moment, true}, {exitPatience, true}}},
		"it exits for good":                {looks: []look{{0, true}, {exitPatience + moment, true}}, want: true},
		"it exited, and is gone":           {looks: []look{{0, true}, {time.Second, true}, {time.Second + moment, false}}},
		"it is gone, another one holds":    {looks: []look{{0, true}, {time.Second, true}, {time.Second + lockPatience + moment, false}}, want: true},
		"it was gone, and is seen exiting": {looks: []look{{0, false}, {lockPatience, true}, {2 * lockPatience, false}}},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Unix(1, 0)
			p := patience{since: began, until: began.Add(exitPatience)}
			for i, l := range tc.looks {
				want := tc.want && i == len(tc.looks)-1
				if got := p.over(began.Add(l.after), l.exiting); got != want {
					t.Fatalf("after %v, exiting %t: over is %t, want %t", l.after, l.exiting, got, want)
				}
			}
		})
	}
}
