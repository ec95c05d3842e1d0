"""The status page: what `health` knows, drawn on the server, with no request to elsewhere."""
