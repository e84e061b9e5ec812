// Package metricstest reads Prometheus metrics inside a test.
package metricstest

import (
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Values gathers what a collector has: values by name, followed by what the given
// labels say, of none by what all of them say; of a histogram how much it has counted.
// A label of a name that Prometheus gives itself fails t.
func Values(t testing.TB, c prometheus.Collector, labels ...string) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() == "instance" || l.GetName() == "job" {
					t.Fatalf("%s has the label %s, which is Prometheus's own name of whom it reads from", name, l.GetName())
				}
				if len(labels) == 0 || slices.Contains(labels, l.GetName()) {
					name += " " + l.GetValue()
				}
			}
			out[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}
