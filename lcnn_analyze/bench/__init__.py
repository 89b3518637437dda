"""The bench: the engine against the fastest dense runtimes and today's ways to run lookup layers, timed in turns."""
