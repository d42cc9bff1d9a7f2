"""From a suite file to the cells it asks for. Nothing here imports torch."""
