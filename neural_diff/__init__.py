"""The neural diff: a patch that turns one exact model file into another exact model file.

What it does: weights that changed are named one by one (sparse), or moved by buckets that a hash
of their index picks (hashed, for integers); all other bytes are given as they are (exact). Integer
arithmetic only, so every machine gets the same bytes; SHA-256 of base, payload, section and result
are checked, and the target appears whole or not at all.

What it does not do: it says nothing about who made a patch (that is signed outside), and nothing is
learnt here: `make_hashed` takes trained buckets. A patch goes back only if it just adds.

For programs: `apply.apply`, `inplace.apply_in_place`, `link.damaged`, `patch.read_patch`,
`make.make_patch`, `make.make_hashed`, `compose.squash`, `compose.invert`, `describe.describe`,
`layout.regions_of`, `hashed.locate`; all they refuse is one of `errors`.

Applier side (standard library; numpy only to go faster), from the bytes up: `errors`, `limits`,
`canonical`; `region`, `section`, `patch` (what a manifest says); `view`, `codec`, `hashed`,
`decode`, `view_numpy`, `codec_numpy`, `decode_numpy` (what a payload does); `stream`, `link`,
`apply`, `inplace`.
Maker side (numpy, never imported by the applier side): `layout`, `alignment`, `difference`,
`encode`, `classes`, `draft`, `make`, `compose`, `describe`.
docs/patch-format.md gives the file byte by byte.
"""
