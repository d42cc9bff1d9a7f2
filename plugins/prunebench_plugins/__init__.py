"""The plugins that come with prunebench; it finds them by entry points, like all others."""
