"""WithSynthetic: the user's own DataModule, with some training samples replaced by synthetic ones."""
