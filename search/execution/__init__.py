"""Ray as the executor: its session, the trials that run in it, and sweep event listeners."""
