package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/images/registry"
	"github.com/kofarm/kofarm/matrix"
)

// cache is the shared cache that the farm file names, nil for none. From now on
// images share their layers there.
func (a *app) cache(s *session) (farm.Cache, error) {
	if s.bundle != nil {
		return farm.BundleCache{Bundle: s.bundle, Store: s.store}, nil
	}
	shared, err := a.registryCache(s, farm.ResultRef)
	if shared == nil || err != nil {
		return nil, err
	}
	s.images.Shared = shared.Layers(s.farm.Cache.Mode == matrix.CacheReadWrite, a.log)
	return asAllowed(s.farm, shared), nil
}

// sharedVerdicts is where tests share their verdicts, beside the results; nil for
// nowhere.
func (a *app) sharedVerdicts(s *session) (boot.Shared, error) {
	shared, err := a.registryCache(s, boot.VerdictRef)
	if shared == nil || err != nil {
		return nil, err
	}
	return farm.SharedVerdicts(asAllowed(s.farm, shared), a.log), nil
}

// registryCache shares refs of a kind by the registry that the farm file names;
// nil where it names none, or no network is to be used.
func (a *app) registryCache(s *session, kind string) (*registry.Cache, error) {
	c := s.farm.Cache
	if c.Registry == "" || a.offline || s.bundle != nil {
		return nil, nil
	}
	shared, err := registry.NewCache(s.store, kind, c.Registry, c.Insecure)
	if err != nil {
		return nil, s.farm.Mistake(c.Pos, "", err.Error(), "")
	}
	return shared, nil
}

// asAllowed is a cache that takes only what the farm file lets it take.
func asAllowed(f *matrix.Farm, c farm.Cache) farm.Cache {
	if f.Cache.Mode == matrix.CacheRead {
		return farm.ReadOnly{Cache: c}
	}
	return c
}

func (a *app) serveCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "serve-store",
		Short: "Serve the store by the OCI distribution API, read-only, until interrupted",
		Long: `serve-store lets registry clients read the store: the repository "results" holds
the results of cells, each tagged with its key, "images" the images. Whoever
reaches the address may read all of the store, so that it is a loopback one
unless another is given. There is no TLS: put a proxy in front for that.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.serveStore(cmd.Context(), listen)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "`address` to listen at; port 0: any free one")
	return cmd
}

// Limits on the clients of serve-store.
const (
	headerTime = 10 * time.Second
	idleTime   = 2 * time.Minute
	leaveTime  = 5 * time.Second // for requests under way at the end
)

func (a *app) serveStore(ctx context.Context, listen string) (err error) {
	s, err := a.openStore()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, infrastructure(s.Close())) }()
	if err := s.Waive(); err != nil { // what gc removes is not found; else gc could remove nothing for as long as this runs
		return infrastructure(err)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return infrastructure(fmt.Errorf("serving the store: %w", err))
	}
	if _, err := fmt.Fprintf(a.stdout, "http://%s/v2/\n", l.Addr()); err != nil {
		return errors.Join(err, l.Close())
	}
	server := &http.Server{Handler: registry.Handler{Store: s}, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return infrastructure(fmt.Errorf("serving the store: %w", err))
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	return infrastructure(errors.Join(server.Shutdown(ctx), server.Close()))
}
