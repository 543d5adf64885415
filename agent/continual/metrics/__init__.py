"""All metrics of a lifetime, computed from what is stored of it (``agent.continual.life``).

``catalog.METRICS`` says what each number is; ``catalog.measure`` computes all of them. Where the
literature uses one word for several formulas, each formula has an id of its own that names where it
is from, so that a number is never compared with another one's definition.
"""
