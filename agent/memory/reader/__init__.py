"""Readers: how what the posterior says is turned into a policy to start from."""
