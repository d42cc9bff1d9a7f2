"""The methods, models and corpora that come with prunebench, found by entry points like anybody's."""
