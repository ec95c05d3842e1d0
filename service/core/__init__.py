"""Use cases as functions named by verbs, `session` first; no HTTP here.

`canary`, `policy` and `chain` are pure: values in, verdict out.
"""
