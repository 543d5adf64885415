"""Learners: how an initialisation and a way to adapt are learned across tasks. One file each."""
