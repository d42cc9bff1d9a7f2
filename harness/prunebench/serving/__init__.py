"""Whether an engine will load a saved model: rules of its reader, asked before anything is loaded.

Nothing here runs an engine. `rules` is the table: what a reader does, where that was read and in
which version, and what to do about it. `check` asks the rules about a folder or a GGUF file.
"""
