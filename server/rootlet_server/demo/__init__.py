"""`rootlet demo`: real devices learn together on real data, offline, in under two minutes."""
