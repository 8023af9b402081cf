"""The replica agent: receives, applies, promotes."""
