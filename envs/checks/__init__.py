"""Single checks of a family, and what they find; ``envs.check`` runs them all."""
