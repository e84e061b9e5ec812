package main

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	natsd "github.com/nats-io/nats-server/v2/server"
)

// serveNATS is a plain NATS server until it is told to end.
func serveNATS(config string) error {
	o, err := natsd.ProcessConfigFile(config)
	if err != nil {
		return err
	}
	o.NoSigs = true
	s, err := natsd.NewServer(o)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	if !s.ReadyForConnections(storeBound) {
		return errors.New("the server does not come up")
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	<-stop
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}
