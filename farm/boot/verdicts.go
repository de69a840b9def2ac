package boot

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// VerdictRef is the kind of the refs that name verdicts. Each is an OCI manifest
// whose config is a Report, so that a registry can hold it too.
const VerdictRef = "verdict"

const (
	// keyAnnotation of a manifest says what the verdict is on: Unit.key.
	keyAnnotation                 = "io.kofarm.verdict.key"
	verdictType   types.MediaType = "application/vnd.kofarm.verdict.v1+json"
	maxVerdict                    = 16 << 20 // bytes of a stored one
)

// Shared holds verdicts outside the store, such as a registry that farms share.
// What goes wrong there is for it to tell of: without it there are more boots, and
// the same verdicts. what names the unit.
type Shared interface {
	Pull(ctx context.Context, key, what string) // brings a verdict into the store, if it is there
	Push(ctx context.Context, key, what string)
}

// known gives the verdict on a unit that the store has, or others, or nil; but not
// what a time limit has decided, which is found anew.
func (t *Tester) known(ctx context.Context, k Kernel, u *Unit) *Report {
	r := t.Stored(k, u)
	if r == nil && t.Shared != nil {
		t.Shared.Pull(ctx, t.key(k, u), u.Name)
		r = t.Stored(k, u)
	}
	if r != nil && r.overdue() {
		return nil
	}
	return r
}

// Stored gives the verdict on a unit that the store has, or nil.
func (t *Tester) Stored(k Kernel, u *Unit) *Report {
	key := t.key(k, u)
	d, err := t.Store.Ref(VerdictRef, key)
	if err != nil {
		return nil
	}
	data, err := t.Store.Get(d.Digest, maxVerdict)
	if err != nil {
		return nil
	}
	m, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil || m.Annotations[keyAnnotation] != key {
		return nil
	}
	var r Report
	if t.Store.GetJSON(m.Config.Digest, maxVerdict, &r) != nil || !slices.Contains(Verdicts(), r.Verdict) || len(r.Modules) != len(u.Modules) {
		return nil
	}
	if t.Alone && len(r.Beside) > 0 {
		return nil
	}
	return &r
}

// overdue says whether a time limit has decided a verdict: it may be the machine's
// fault.
func (r *Report) overdue() bool { return r.Verdict == Hung || r.Script.killed() }

// save stores a verdict, and tells others, unless one of several modules in a boot
// may have given it for another, or a time limit has decided it.
func (t *Tester) save(ctx context.Context, k Kernel, u *Unit, r *Report) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	config, err := t.Store.Put(data, verdictType)
	if err != nil {
		return err
	}
	key := t.key(k, u)
	data, err = json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config,
		Layers: []v1.Descriptor{}, Annotations: map[string]string{keyAnnotation: key}})
	if err != nil {
		return err
	}
	d, err := t.Store.Put(data, types.OCIManifestSchema1)
	if err == nil {
		err = t.Store.SetRef(VerdictRef, key, d)
	}
	if err == nil && t.Shared != nil && len(r.Beside) == 0 && !r.overdue() {
		t.Shared.Push(ctx, key, u.Name)
	}
	return err
}
