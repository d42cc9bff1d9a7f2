"""Where cells run. An engine takes the cells of a run and yields each record as its cell ends."""
