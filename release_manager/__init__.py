"""Publishes speech models as small signed diffs and rolls them out to devices.

A client of the REST API and nothing more. The offline keys never leave the machine it runs on,
and nothing that the server says is signed before it was verified from the pinned root.

first steps:
  fleetdiff init --dev
  fleetdiff login --server URL --token -
  fleetdiff init --publish
  fleetdiff model create NAME
  fleetdiff release publish NAME r1 FILE

exit codes:
  0   done
  1   refused by the server, or a check failed
  2   wrong usage or configuration
  3   the rollout ended otherwise (for example halted)
  4   the time was over first
  75  the server could not be reached; try again

with --json an error is one JSON object, the last line of stderr: detail, advice and exit, and
type, title and status too where a server refused (RFC 9457)
"""
