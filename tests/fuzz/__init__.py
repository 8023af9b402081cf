"""Fuzz targets for everything that reads bytes which others wrote; docs/fuzzing.md tells how to run them."""
