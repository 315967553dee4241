"""Files, folders, hashes, seeds, records: what every other room stands on. Imports none of them, and no torch."""
