"""Lifetimes: one agent on one stream of visits, told neither which task it is at nor whether it was there before."""
