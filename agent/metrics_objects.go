package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kbroker/kbroker"
)

// objectMetric is one of the figures that instances with objects have.
type objectMetric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(*kbroker.ObjectFigures) float64
}

func objectCount(what, help string, of func(*kbroker.ObjectFigures) float64) objectMetric {
	return objectMetric{desc("instance_"+what, help, instanceLabels...), prometheus.CounterValue, of}
}

func objectGauge(what, help string, of func(*kbroker.ObjectFigures) float64) objectMetric {
	return objectMetric{desc("instance_"+what, help, instanceLabels...), prometheus.GaugeValue, of}
}

// objectMetrics are what an instance has counted itself since it started, as it said when it
// was asked last whether it is well.
var objectMetrics = []objectMetric{
	objectCount("object_turns_total", "Turns of objects that have ended.", func(f *kbroker.ObjectFigures) float64 { return float64(f.Turns) }),
	objectCount("object_reads_total", "Calls of read-only methods of objects that have ended.", func(f *kbroker.ObjectFigures) float64 { return float64(f.Reads) }),
	objectCount("object_refused_total", "Calls of objects that were refused: not executed, or too old to tell.", func(f *kbroker.ObjectFigures) float64 { return float64(f.Refused) }),
	objectCount("object_commits_total", "Batches of what turns did, and of claims, that were stored.", func(f *kbroker.ObjectFigures) float64 { return float64(f.Commits) }),
	objectCount("object_commits_refused_total", "Batches that were not stored, as something was not where it was expected.", func(f *kbroker.ObjectFigures) float64 { return float64(f.CommitsRefused) }),
	objectCount("object_activations_total", "Objects that came into memory.", func(f *kbroker.ObjectFigures) float64 { return float64(f.Activations) }),
	objectGauge("objects_active", "Objects in memory.", func(f *kbroker.ObjectFigures) float64 { return float64(f.Active) }),
	objectGauge("object_outbox_messages", "Messages of objects in memory that are stored and not taken by their receivers yet.", func(f *kbroker.ObjectFigures) float64 { return float64(f.Outbox) }),
	objectGauge("object_shards", "Shards of objects that the instance serves.", func(f *kbroker.ObjectFigures) float64 { return float64(f.Shards) }),
	objectCount("object_shards_taken_total", "Shards that the instance has begun to serve.", func(f *kbroker.ObjectFigures) float64 { return float64(f.ShardsTaken) }),
	objectCount("object_shards_taking_seconds_total", "Time that they were not served, each from when the instance was to serve it till it heard its requests.", func(f *kbroker.ObjectFigures) float64 { return f.TakingS }),
	objectCount("object_shards_released_total", "Shards that the instance has left to another.", func(f *kbroker.ObjectFigures) float64 { return float64(f.ShardsReleased) }),
	objectCount("object_shards_releasing_seconds_total", "Time that they were not served, each from when the instance heard its requests no more till it was released.", func(f *kbroker.ObjectFigures) float64 { return f.ReleasingS }),
}
