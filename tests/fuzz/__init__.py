"""A fuzzer for the reader and the decoders of patches; see `targets`."""
