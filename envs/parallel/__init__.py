"""Independent Python environments as rows of one batch, in this process or in workers."""
