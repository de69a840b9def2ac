#!/usr/bin/python3
"""Checks kofarm's statements and SBOMs without anything of kofarm's.

usage: check.py DIST PUBLIC-KEY

The envelopes are taken apart by the DSSE specification and their signatures
verified by openssl; the statements are read by those of in-toto and SLSA; the
SPDX documents are held against the clauses of SPDX 2.3. Exits with 1 and says
why where something does not hold.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path


class Refused(Exception):
    pass


def need(ok, *why):
    if not ok:
        raise Refused(" ".join(str(w) for w in why))


def once(pairs):
    names = [name for name, _ in pairs]
    need(len(names) == len(set(names)), "a name is there twice:", names)
    return dict(pairs)


def load(data):
    return json.loads(data, object_pairs_hook=once)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
def payload(line, public):
    envelope = load(line)
    kind, body = envelope["payloadType"], base64.b64decode(envelope["payload"], validate=True)
    need(kind == "application/vnd.in-toto+json", "payloadType", kind)
    need(len(envelope["signatures"]) == 1, "signatures", envelope["signatures"])
    pae = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(body), body)
    sig = envelope["signatures"][0]
    der = subprocess.run(["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"], check=True, capture_output=True).stdout
    need(sig["keyid"] == hashlib.sha256(der).hexdigest(), "keyid", sig["keyid"])
    text = subprocess.run(["openssl", "pkey", "-pubin", "-in", public, "-noout", "-text"], check=True, capture_output=True, text=True).stdout
    digest = "-sha384" if "P-384" in text else "-sha512" if "P-521" in text else "-sha256"
    with tempfile.TemporaryDirectory() as tmp:
        Path(tmp, "pae").write_bytes(pae)
        Path(tmp, "sig").write_bytes(base64.b64decode(sig["sig"], validate=True))
        done = subprocess.run(["openssl", "dgst", digest, "-verify", public, "-signature", f"{tmp}/sig", f"{tmp}/pae"], capture_output=True, text=True)
    need(done.returncode == 0 and done.stdout == "Verified OK\n", "openssl dgst -verify:", done.stdout, done.stderr)
    return body


def digest(d):
    need(re.fullmatch("[0-9a-f]{64}", d["digest"]["sha256"]), "digest", d)
    return d["digest"]["sha256"]


# https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance
def statement(body, artifact):
    s = load(body)
    need(s["_type"] == "https://in-toto.io/Statement/v1", "_type", s["_type"])
    need(s["predicateType"] == "https://slsa.dev/provenance/v1", "predicateType", s["predicateType"])
    need([(d["name"], digest(d)) for d in s["subject"]] == [(artifact.name, sha256(artifact))], "subject", s["subject"])
    definition, run = s["predicate"]["buildDefinition"], s["predicate"]["runDetails"]
    need(definition["buildType"].startswith("https://"), "buildType", definition["buildType"])
    external = definition["externalParameters"]
    need(external["cells"] and all(re.fullmatch("[0-9a-f]{64}", c["key"]) for c in external["cells"]), "cells", external)
    need(":" in run["builder"]["id"], "builder.id", run["builder"])
    need("startedOn" not in run["metadata"] and "finishedOn" not in run["metadata"], "there is a clock in", run["metadata"])
    for d in definition["resolvedDependencies"]:
        digest(d)
        need(d["annotations"]["role"] == "recipe" or d["uri"].startswith("pkg:"), "uri", d)
    need(len([d for d in definition["resolvedDependencies"] if d["annotations"]["role"] == "source"]) == 1, "no source")
    [sbom] = run["byproducts"]
    path = artifact.with_name(sbom["name"])
    need(sbom["name"] == artifact.name + ".spdx.json" and digest(sbom) == sha256(path), "byproduct", sbom)
    return s, path


LENGTHS = {"SHA1": 40, "SHA256": 64}
RELATIONS = {"DESCRIBES", "CONTAINS", "GENERATED_FROM", "BUILD_TOOL_OF", "BUILD_DEPENDENCY_OF"}
PURPOSES = {"ARCHIVE", "INSTALL", "SOURCE", None}
# Of the SPDX License List, those that kernel modules and the tests have.
LISTED = {"GPL-2.0-only", "GPL-2.0-or-later", "MIT", "BSD-3-Clause", "MPL-1.1"}


def license(expression, refs):
    if expression in ("NOASSERTION", "NONE"):
        return
    words = re.findall(r"[()]|[A-Za-z0-9.+-]+|\S", expression)
    depth, operand = 0, True
    for w in words:
        if w == "(":
            need(operand, "license", expression)
            depth += 1
        elif w == ")":
            need(not operand and depth > 0, "license", expression)
            depth -= 1
        elif w in ("AND", "OR"):
            need(not operand, "license", expression)
            operand = True
        else:
            need(operand and (w in LISTED or w in refs), "license", w, "in", expression)
            operand = False
    need(depth == 0 and not operand, "license", expression)


def checksums(element, wanted):
    got = {c["algorithm"]: c["checksumValue"] for c in element["checksums"]}
    need(wanted <= got.keys(), "checksums of", element["SPDXID"], got)
    for algorithm, value in got.items():
        need(re.fullmatch("[0-9a-f]{%d}" % LENGTHS[algorithm], value), "checksum", value)
    return got


# https://spdx.github.io/spdx-spec/v2.3/: clauses 6 to 11
def spdx(path, artifact, s):
    d = load(path.read_bytes())
    need(d["spdxVersion"] == "SPDX-2.3" and d["dataLicense"] == "CC0-1.0" and d["SPDXID"] == "SPDXRef-DOCUMENT", "6.1 to 6.3")
    need(d["name"] == artifact.name and re.fullmatch(r"https://[^#\s]+", d["documentNamespace"]), "6.4, 6.5", d["documentNamespace"])
    creation = d["creationInfo"]
    need(all(re.match("(Person|Organization|Tool): .", c) for c in creation["creators"]) and creation["creators"], "6.8", creation)
    need(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", creation["created"]), "6.9", creation)
    refs = {x["licenseId"]: x["extractedText"] for x in d.get("hasExtractedLicensingInfos", [])}
    need(all(re.fullmatch("LicenseRef-[A-Za-z0-9.-]+", r) and t for r, t in refs.items()), "10.1, 10.2", refs)
    used = set()
    elements = {"SPDXRef-DOCUMENT": d}
    for e in d["packages"] + d.get("files", []):
        need(re.fullmatch("SPDXRef-[A-Za-z0-9.-]+", e["SPDXID"]) and e["SPDXID"] not in elements, "7.2, 8.2", e["SPDXID"])
        elements[e["SPDXID"]] = e
    for p in d["packages"]:
        need(p["name"] and p["downloadLocation"] and p["filesAnalyzed"] is False and "packageVerificationCode" not in p, "7.1 to 7.9", p)
        need(p["supplier"] == "NOASSERTION" or re.match("(Person|Organization): .", p["supplier"]), "7.5", p)
        need(p.get("primaryPackagePurpose") in PURPOSES and p["copyrightText"], "7.24", p)
        checksums(p, {"SHA256"})
        for field in ("licenseConcluded", "licenseDeclared"):
            license(p[field], refs)
            used |= set(re.findall("LicenseRef-[A-Za-z0-9.-]+", p[field]))
        for r in p.get("externalRefs", []):
            need(r["referenceCategory"] == "PACKAGE-MANAGER" and r["referenceType"] == "purl" and r["referenceLocator"].startswith("pkg:"), "7.21", r)
    for f in d.get("files", []):
        need(f["fileName"].startswith("./") and f["fileTypes"] == ["BINARY"] and f["copyrightText"], "8.1, 8.3", f)
        checksums(f, {"SHA1", "SHA256"})
        for x in f["licenseInfoInFiles"]:
            license(x, refs)
            used |= set(re.findall("LicenseRef-[A-Za-z0-9.-]+", x))
    need(used == refs.keys(), "10.1: licenses that nothing has, or that are not there", used, refs)
    related, described = set(), []
    for r in d["relationships"]:
        a, b, kind = r["spdxElementId"], r["relatedSpdxElement"], r["relationshipType"]
        need(kind in RELATIONS and a in elements and b in elements, "11.1", r)
        related |= {a, b}
        if kind == "DESCRIBES":
            described.append(b)
    need(related == elements.keys(), "unrelated:", elements.keys() - related)
    [main] = described
    need(checksums(elements[main], {"SHA256"})["SHA256"] == sha256(artifact), "it describes", elements[main])
    # The two documents tell the same.
    packages = {c["checksumValue"] for p in d["packages"] for c in p["checksums"]} - {sha256(artifact)}
    inputs = {digest(x) for x in s["predicate"]["buildDefinition"]["resolvedDependencies"] if x["annotations"]["role"] != "recipe"}
    need(packages == inputs, "the SBOM and the statement differ:", packages ^ inputs)


def main(dist, public):
    found = sorted(Path(dist).glob("*.intoto.jsonl"))
    need(found, "no envelopes in", dist)
    for path in found:
        artifact = path.with_name(path.name.removesuffix(".intoto.jsonl"))
        try:
            need(path.read_bytes().count(b"\n") == 1, "more than one line")
            s, sbom = statement(payload(path.read_bytes(), public), artifact)
            spdx(sbom, artifact, s)
        except (Refused, KeyError, ValueError, TypeError, AttributeError) as e:
            sys.exit(f"{path}: {type(e).__name__}: {e}")
    print(f"{len(found)} statements and SBOMs hold")


main(*sys.argv[1:])
