"""The whole pair in one thread under a simulated clock, network, disk and store; seeded and deterministic."""
