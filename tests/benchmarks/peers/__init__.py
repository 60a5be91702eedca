"""The peers: each does scoremean's job, POST {"UUID", "score"} -> mean once durable, in the usual way of its libraries."""
