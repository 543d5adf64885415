"""Tasks and simulators: where the worlds that an agent learns in come from.

Nothing here knows of learners or of torch; arrays in, arrays out.
"""
