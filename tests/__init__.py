"""One file per module, plus contract suites that find every config by globbing."""
