"""One file per model family; each holds a `FAMILY`, which `models.registry` finds."""
