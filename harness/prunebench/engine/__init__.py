"""Where cells run. An engine takes cells and gives their records, one by one, as they end."""
