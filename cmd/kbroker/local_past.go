package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
)

// noteGone learns from the data directories which hosts are not of the cluster
// any more, and returns what there is to say about those that nobody has removed.
// Started again they would be a second cluster beside the one of the others.
func (l *localCluster) noteGone() (notices []string, err error) {
	pasts := make([]node.Past, len(l.Hosts))
	rescuer := map[string]kbroker.HostID{} // by the cluster that was lost
	founded := false
	for i, h := range l.Hosts {
		if pasts[i], err = node.PastOf(l.hostDir(h.Name)); err != nil {
			return nil, fmt.Errorf("look at host %s: %w", h.Name, err)
		}
		if from := pasts[i].RescuedFrom; from != "" {
			rescuer[from] = h.Name
		}
		founded = founded || pasts[i].ClusterID != ""
	}
	for i, h := range l.Hosts {
		past, by := pasts[i], rescuer[pasts[i].ClusterID]
		switch {
		case h.Removed:
			continue
		case past.Removed:
		case by != "" && !h.worker(): // a worker comes by itself
			notices = append(notices, fmt.Sprintf("host %s has the data of cluster %s, which %s was rescued from: it is not started again",
				h.Name, past.ClusterID, by))
		case i == 0 && past.ClusterID == "" && len(rescuer) > 0:
			notices = append(notices, fmt.Sprintf("host %s has lost its data, and its cluster was rescued: it is not started again", h.Name))
		case i == 0 && past.ClusterID == "" && founded:
			notices = append(notices, fmt.Sprintf("host %s has lost its data: it is not started again; kbroker doctor says how the others go on without it", h.Name))
		default:
			continue
		}
		l.Hosts[i].Removed = true
	}
	return notices, nil
}

// noteRemoved learns from the cluster which hosts without a data directory it has
// removed: a name that was used is not used again. Of a cluster that does not
// answer nothing is learnt; who joins then is told.
func (c *cli) noteRemoved(ctx context.Context, l *localCluster) error {
	without := map[kbroker.HostID]bool{}
	for i, h := range l.Hosts {
		past, err := node.PastOf(l.hostDir(h.Name))
		if err != nil {
			return fmt.Errorf("look at host %s: %w", h.Name, err)
		}
		without[h.Name] = i > 0 && !h.Removed && past.ClusterID == ""
	}
	if !slices.ContainsFunc(l.Hosts, func(h localHost) bool { return without[h.Name] }) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, upAsk)
	defer cancel()
	rows, err := c.hosts(ctx, true)
	if err != nil {
		return nil
	}
	for i, h := range l.Hosts {
		if without[h.Name] && slices.ContainsFunc(rows, func(r kbroker.HostRow) bool {
			return r.Name == h.Name && r.State == kbroker.HostRemoved
		}) {
			l.Hosts[i].Removed = true
		}
	}
	return nil
}
