"""Methods of others and baselines, one short file each, to live streams beside Engram."""
