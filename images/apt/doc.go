// Package apt is a client for Debian package archives: signed indexes, packages, and the closure of
// dependencies that apt would install on a fresh system without recommendations.
//
// Client.Open verifies a suite's InRelease against a keyring, downloads the package indexes that it
// names by checksum, and opens them. A Universe joins several suites and looks packages up in them as
// apt's default priorities do; Resolve computes closures in a Universe. Nothing is installed here:
// a Package says where its .deb is and which checksum it has.
//
// Formats: deb822(5), deb-control(5), Debian Policy chapters 5 and 7, and
// https://wiki.debian.org/DebianRepository/Format. Everything that is parsed is hostile until the
// signature held, and has limits after that too.
package apt
