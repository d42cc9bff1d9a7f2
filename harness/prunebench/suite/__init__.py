"""From a suite file to its cells. Nothing here imports torch."""
