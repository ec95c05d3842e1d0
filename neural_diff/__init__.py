"""The neural diff: a patch that turns one exact model file into another exact model file.

Applier side (standard library; numpy only to go faster): `errors`, `limits`, `canonical`, `region`,
`section`, `codec`, `patch`, `sparse`, `hashed`, `view`, `decode`, `decode_numpy`, `apply`.
Maker side (numpy, never imported by the applier side): `layout`, `encode`, `draft`, `difference`,
`make`, `describe`.
docs/patch-format.md gives the file byte by byte.
"""
