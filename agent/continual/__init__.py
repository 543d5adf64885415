"""Lifetimes: one agent on one stream of visits, told neither the task nor whether it was met."""
