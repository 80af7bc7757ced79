"""The learning scoreboard: every rule on real data, tuned alike, as one table."""
