"""Statistics of lifetimes: the unit is one agent on one stream with one seed, never a task of it.

Intervals, tests and aggregates of few runs on numpy and scipy alone. What is random takes an
explicit generator. The aggregates are those of Agarwal et al., "Deep RL at the edge of the
statistical precipice" (2021); coverage is simulated in ``tests/test_statistics.py``.
"""
