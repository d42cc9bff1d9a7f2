"""The Ray engine: cells as tasks of a Ray cluster.

`engine` has the options and checks that every cell fits somewhere, `cluster` joins or starts a
cluster, `driver` hands the cells out and listens, `agent` runs on the nodes, and `messages` is what
the two say to each other.
"""
