"""Episodic memory of policies: keys say which task it is, rows hold what was worked out for it."""
