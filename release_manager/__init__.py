"""The `fleetdiff` command line: keys, diffs, signing, publishing, rollouts.

A client of the REST API and nothing more. The offline keys never leave the machine it runs on,
and nothing that the server says is signed before it was verified from the pinned root.
"""
