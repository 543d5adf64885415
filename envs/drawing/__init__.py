"""Pictures of simulations with or without OpenGL; ``envs.pictures`` is the way in."""
