// Command kofarm builds Linux kernel modules for many kernels in containers.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/kofarm/kofarm/cmd/kofarm/cli"
	"github.com/kofarm/kofarm/worker/embedded"
)

func main() {
	embedded.Reexec()
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as it is below nohup
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	context.AfterFunc(ctx, stop) // a second signal ends kofarm at once
	code := cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
