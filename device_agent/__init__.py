"""The device agent: it polls, verifies, downloads, applies, tries, and commits or rolls back.

`states` is the cycle as values and pure functions, `device` is the world it runs in, `run` in
`agent` is the loop. Everything a device needs is pure Python: the standard library, `tuf`, and
the applier side of `neural_diff`.
"""
