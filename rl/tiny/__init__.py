"""Training of the bundled model closeup-tiny, from nothing, on two processor cores."""
