"""Keys: what a few probe episodes say of the task, and how likely two of them are of one task."""
