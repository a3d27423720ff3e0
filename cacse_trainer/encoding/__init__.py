"""From a folder to an encoder, and from sentences to vectors; whatever reads and writes an encoder's folder."""
