"""Configuration data. Ships as the package ``agent.configs``; nothing to import here."""
