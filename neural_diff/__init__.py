"""The neural diff: a patch that turns one exact model file into another exact model file.

What it does: weights that changed are named one by one (sparse), or moved by buckets that a hash
of their index picks (hashed, for integers); all other bytes are given as they are (exact). Integer
arithmetic only, so every machine gets the same bytes; SHA-256 of base, payload, section and result
are checked, and the target appears whole or not at all.

What it does not do: a patch goes one way (the way back is another patch), says nothing about who
made it (that is signed outside), and finds tensors in safetensors files only; of any other file it
gives the bytes near a difference. Nothing is learnt here: `make_hashed` takes trained buckets.

For programs: `apply.apply`, `patch.read_patch`, `make.make_patch`, `make.make_hashed`,
`describe.describe`, `layout.regions_of`, `hashed.locate`; all they refuse is one of `errors`.

Applier side (standard library; numpy only to go faster): `errors`, `limits`, `canonical`, `region`,
`section`, `codec`, `patch`, `hashed`, `view`, `decode`, `decode_numpy`, `apply`.
Maker side (numpy, never imported by the applier side): `layout`, `encode`, `draft`, `difference`,
`make`, `describe`.
docs/patch-format.md gives the file byte by byte.
"""
