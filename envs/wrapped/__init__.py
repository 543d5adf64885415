"""A Gymnasium environment as a simulator of tasks; ``envs.gym_tasks`` is the way in."""
