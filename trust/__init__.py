"""Who may say what: TUF metadata for releases, small signed orders for devices.

The verify side (`errors`, `fields`, `roles`, `order`, `floors`, `verify`) is pure Python and runs
on devices. The server judges uploads by `accept`. The sign side (`sign`) needs `cryptography` and
runs with release managers and the publisher.
"""
