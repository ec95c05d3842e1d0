"""The database: tables, the queries longer than a `get`, and the one place that commits."""
