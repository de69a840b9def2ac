// Package fetch downloads files whose sha256 is known before they are asked for, and the few that
// change in place.
//
// A content-addressed file (Client.Fetch) is written to a partial file under a lock, resumed where
// an earlier attempt stopped, checked, and only then given its final name, which is its checksum. A
// file with its final name is therefore trusted. Mirrors are tried in the order given.
//
// A file that changes in place (Client.Mutable), such as a Debian archive's InRelease, is asked for
// conditionally against the copy kept from the last time, and is handed to the caller's check before
// it replaces that copy.
//
// Everything a server sends is hostile: every body has a limit, a transfer that stalls is given up,
// and a Retry-After is capped.
package fetch
