"""What can be wrong with a patch, its base or its result.

    NeuralDiffError
    ├── Malformed    not a patch, a kind or codec this version does not know, or over a limit
    ├── WrongBase    the base file is not the one the patch was made for
    ├── Corrupt      a digest is wrong: of the manifest, of a section, or of the result
    └── Unsuitable   a sound patch, but not for this use: to go back, or to be applied in place

All four are permanent: trying again with the same files gives the same answer. Trouble with the
disk stays an `OSError`, which is transient.
"""


class NeuralDiffError(Exception):
    """A diff that cannot be read, made or applied."""


class Malformed(NeuralDiffError):
    """Bytes that are no patch this version can read: refused before anything is written."""


class WrongBase(NeuralDiffError):
    """A base file that is not the one the patch was made for."""


class Unsuitable(NeuralDiffError):
    """A patch that is sound, but cannot be used in the way that was asked for."""


class Corrupt(NeuralDiffError):
    """Bytes that do not have the digest that was promised for them."""
