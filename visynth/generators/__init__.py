"""Everything that samples images, one contract, one file a family."""
