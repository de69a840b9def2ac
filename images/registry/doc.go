// Package registry connects a store with the OCI distribution API (spec v1.1):
// [Handler] serves a store, read-only, and [Cache] brings what one farm has
// made to the stores of others by way of a registry.
//
// What a registry sends is hostile: each blob is taken only with the size and
// the sha256 that its manifest names. The manifest itself is found by a tag, so
// whoever may write to the registry decides what a cell's result is, as with
// every cache that is shared.
package registry
