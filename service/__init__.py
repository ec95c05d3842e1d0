"""The Fleetdiff server: stores releases and patches, offers them to cohorts, judges the canary.

Imports point down: `__main__ > app > (api | dashboard) > core > (db | blobs) > (settings | logs)`.
"""
