"""A version's life: added, checked, compared, loaded, unloaded."""
