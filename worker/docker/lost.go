package docker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/docker/docker/client"

	"github.com/kofarm/kofarm/worker"
)

// lost marks errors of a daemon that has gone.
func lost(err error) error {
	if err == nil || errors.Is(err, worker.ErrLost) || !client.IsErrConnectionFailed(err) {
		return err
	}
	return fmt.Errorf("%w: %w", worker.ErrLost, err)
}

// cut marks an error of a stream from the daemon: the client hands on what
// ends it as it is.
func cut(err error) error {
	if _, ok := errors.AsType[net.Error](err); ok {
		return fmt.Errorf("%w: %w", worker.ErrLost, err)
	}
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return fmt.Errorf("%w: %w", worker.ErrLost, err)
		}
	}
	return err
}
