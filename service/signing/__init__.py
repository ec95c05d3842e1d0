"""The publisher: the only room that holds keys; no request reaches it."""
