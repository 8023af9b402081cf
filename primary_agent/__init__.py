"""The primary agent: follows the HRL and streams it."""
