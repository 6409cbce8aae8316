"""The static edition: all lessons as pages that need no kernel and no network."""
