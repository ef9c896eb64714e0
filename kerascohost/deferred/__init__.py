"""Programs left as they are: their fits are deferred, and trained together."""
